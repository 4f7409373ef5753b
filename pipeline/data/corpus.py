"""Corpora: from a source in the spec to records; one class a `data.source.kind`.

The driver opens a corpus, fingerprints it and cuts it into units; Ray Data's workers read units. Both must reach its
path, a folder that all of them see or a URI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pipeline.data.layout import Modality
from pipeline.data.records import Corpus
from pipeline.data.sources.builtin import BuiltinCorpus
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.data.sources.lines import LinesCorpus
from pipeline.data.sources.named import FilesCorpus
from pipeline.data.sources.npz import NpzCorpus
from pipeline.data.sources.parquet import ParquetCorpus
from pipeline.data.sources.rows import CsvCorpus, JsonLinesCorpus
from pipeline.data.sources.tar import TarCorpus
from pipeline.spec import Source

CORPORA: dict[str, Callable[[Any, Modality], Corpus]] = {
    "builtin": BuiltinCorpus,
    "files": FilesCorpus,
    "tar": TarCorpus,
    "lines": LinesCorpus,
    "jsonl": JsonLinesCorpus,
    "csv": CsvCorpus,
    "parquet": ParquetCorpus,
    "huggingface": open_huggingface,
    "npz": NpzCorpus,
}


def open_corpus(source: Source, modality: Modality) -> Corpus:
    """The corpus of a source. Raises: CorpusError when it is missing, empty or of another modality."""
    return CORPORA[cast(Any, source).kind](source, modality)
