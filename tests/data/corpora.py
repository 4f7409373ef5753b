"""Corpora of the tests: from the keys of a source, read as a preparation reads them."""

from __future__ import annotations

import json
import pickle
from typing import Any

from pydantic import TypeAdapter

from pipeline.data.corpus import open_corpus
from pipeline.data.records import Corpus, Record
from pipeline.spec import AnySource

SOURCES: TypeAdapter[Any] = TypeAdapter(AnySource)


def corpus_of(modality: Any, **source: Any) -> Corpus:
    return open_corpus(SOURCES.validate_python(source), modality)


def records_of(corpus: Corpus, limit: int | None = None) -> list[Record]:
    """All records, read by a copy of the corpus from units that were written down, as in another process."""
    units = json.loads(json.dumps(corpus.units(limit)))
    reader = pickle.loads(pickle.dumps(corpus))
    return [record for unit in units for record in reader.read(unit)]
