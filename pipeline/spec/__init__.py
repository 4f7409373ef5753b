"""The spec of a run, and reading it.

`load_spec` reads a YAML file, applies `key.path=value` overrides and reports every mistake at once, each with
its path, the value seen, what is allowed and the nearest right key. The same tree is stored in every
checkpoint, MLflow run and registered model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.reading import apply_overrides, read_tree, validated
from pipeline.spec.codecs import (
    AnyCodecSpec,
    BpeCodecSpec,
    BytesCodecSpec,
    CharactersCodecSpec,
    ImageCodecSpec,
    LogMelCodecSpec,
    MuLawCodecSpec,
    PictureCodecSpec,
    RasterCodecSpec,
    SoundCodecSpec,
    TextCodecSpec,
    TrainedCodecSpec,
    UnigramCodecSpec,
    WaveformCodecSpec,
    WordsCodecSpec,
)
from pipeline.spec.data import (
    AudioCleaningSpec,
    CleaningSpec,
    DataSpec,
    DuplicatesSpec,
    ImageCleaningSpec,
    PersonalData,
    PromptSpec,
    SplitSpec,
    TextCleaningSpec,
)
from pipeline.spec.evaluation import (
    AnyExtractorSpec,
    CorpusExtractorSpec,
    EvaluationSpec,
    NetworkInputSpec,
    TorchScriptExtractorSpec,
)
from pipeline.spec.health import EarlyStoppingSpec, HealthSpec
from pipeline.spec.model import (
    AnyBackboneSpec,
    AnyFamilySpec,
    ConditionSpec,
    ConvBackboneSpec,
    GanSpec,
    GumbelSpec,
    MlpBackboneSpec,
    ModelSpec,
    PretrainingSpec,
    RecurrentBackboneSpec,
    ResnetBackboneSpec,
    RnnSpec,
    SignalBackboneSpec,
    VaeSpec,
)
from pipeline.spec.profile import ProfileSpec
from pipeline.spec.release import Limit, ReleaseSpec
from pipeline.spec.run import (
    RegistrySpec,
    RunSpec,
    TrackingSpec,
)
from pipeline.spec.sources import (
    AnySource,
    BuiltinSource,
    CsvSource,
    FieldSource,
    FilesSource,
    HuggingFaceSource,
    JsonLinesSource,
    LinesSource,
    NamedFiles,
    NpzSource,
    ParquetSource,
    Source,
    TarSource,
    gives_split,
)
from pipeline.spec.training import TrainingSpec, TransferSpec

__all__ = [
    "AnyBackboneSpec",
    "AnyCodecSpec",
    "AnyExtractorSpec",
    "AnyFamilySpec",
    "AnySource",
    "AudioCleaningSpec",
    "BpeCodecSpec",
    "BuiltinSource",
    "BytesCodecSpec",
    "CharactersCodecSpec",
    "CleaningSpec",
    "ConditionSpec",
    "ConvBackboneSpec",
    "CorpusExtractorSpec",
    "CsvSource",
    "DataSpec",
    "DuplicatesSpec",
    "EarlyStoppingSpec",
    "EvaluationSpec",
    "FieldSource",
    "FilesSource",
    "GanSpec",
    "GumbelSpec",
    "HealthSpec",
    "HuggingFaceSource",
    "ImageCleaningSpec",
    "ImageCodecSpec",
    "JsonLinesSource",
    "Limit",
    "LinesSource",
    "LogMelCodecSpec",
    "MlpBackboneSpec",
    "ModelSpec",
    "MuLawCodecSpec",
    "NamedFiles",
    "NetworkInputSpec",
    "NpzSource",
    "ParquetSource",
    "PersonalData",
    "PictureCodecSpec",
    "PretrainingSpec",
    "ProfileSpec",
    "PromptSpec",
    "RasterCodecSpec",
    "RecurrentBackboneSpec",
    "RegistrySpec",
    "ReleaseSpec",
    "ResnetBackboneSpec",
    "RnnSpec",
    "RunSpec",
    "SignalBackboneSpec",
    "SoundCodecSpec",
    "Source",
    "SplitSpec",
    "TarSource",
    "TextCleaningSpec",
    "TextCodecSpec",
    "TorchScriptExtractorSpec",
    "TrackingSpec",
    "TrainedCodecSpec",
    "TrainingSpec",
    "TransferSpec",
    "UnigramCodecSpec",
    "VaeSpec",
    "WaveformCodecSpec",
    "WordsCodecSpec",
    "gives_split",
    "json_schema",
    "load_spec",
    "make_spec",
]


def load_spec(path: str | Path, overrides: Iterable[str] = ()) -> RunSpec:
    """The spec in the YAML file `path` with `key.path=value` overrides applied.

    A value is read as YAML. Overriding a `kind` starts that part anew, so that keys of the other kind do not
    linger. Raises: SpecError with every mistake.
    """
    return make_spec(apply_overrides(read_tree(path), overrides), where=str(path))


def make_spec(tree: Mapping[str, Any], where: str = "spec") -> RunSpec:
    """Validate a tree of plain values. Raises: SpecError with every mistake."""
    return validated(RunSpec, tree, where)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the spec, for editors (`# yaml-language-server: $schema=...`)."""
    return RunSpec.model_json_schema()
