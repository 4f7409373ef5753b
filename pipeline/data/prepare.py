"""Prepare: from a spec's corpus to an immutable set of shards, by Ray Data. [ray]

The driver opens the corpus, lets Ray Data's workers read it into parts, decides from the parts' small columns what is
kept and on which side, and lets the workers encode and cut the shards. Everything written is a function of the
corpus and the spec, and the manifest comes last: a preparation that was killed, at whatever moment, is
continued by the next one, and two at once write the same. Assumes that Ray is initialised.
"""

from __future__ import annotations

from pipeline.data.cleaning import read_lists
from pipeline.data.codec import make_codec
from pipeline.data.corpus import open_corpus
from pipeline.data.layout import Layout
from pipeline.data.manifest import FOLDER, MANIFEST, Manifest, prepared_key
from pipeline.data.parts import forget
from pipeline.data.preparation import Preparation
from pipeline.data.prepared import Prepared, find_prepared
from pipeline.data.records import Corpus
from pipeline.data.work import work_folder
from pipeline.errors import CorpusError
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec
from pipeline.storage import Store


def prepare(spec: RunSpec, store: Store, progress: Progress = silent, corpus: Corpus | None = None) -> Prepared:
    """The prepared set of `spec` in `store`: found if it is there and whole, else made.

    `corpus`: the spec's, where the caller has opened it already. Raises: CorpusError, CodecError, PreparedDataError,
    StorageError; there is no manifest then, but where the set is whole and has not what the model is asked for.
    """
    prepared = _found_or_made(spec, store, progress, corpus)
    check_conditions(spec, prepared.layout)
    return prepared


def check_conditions(spec: RunSpec, layout: Layout) -> None:
    """Raises: CorpusError when the model is asked for labels or prompts that no training example has."""
    where = getattr(spec.data.source, "path", getattr(spec.data.source, "name", ""))
    for name, known in (("label", layout.labels), ("prompt", layout.prompts)):
        if name in spec.model.condition.on and not known:
            raise CorpusError(
                f"{where}: model.condition.on has {name!r}, and no training example has a {name}; change the keys of "
                f"data.source that say what a {name} is, or take {name!r} out"
            )


def _found_or_made(spec: RunSpec, store: Store, progress: Progress, corpus: Corpus | None) -> Prepared:
    progress("prepare", 0, None, "reading the corpus's fingerprint")
    codec = make_codec(spec.data.codec)
    corpus = corpus or open_corpus(spec.data.source, codec.modality)
    key = prepared_key(spec, corpus)
    found = find_prepared(store, key)
    if found is not None and not found.missing_shards():
        progress("prepare", found.manifest.report["kept"], found.manifest.report["kept"], f"found {key}")
        return found
    codec = make_codec(spec.data.codec, corpus.single_document)
    folder = store.child(FOLDER, key)
    if found is not None:
        told = f"{', '.join(found.missing_shards()[:3])} of {key}: missing, or of another size; preparing it again"
        progress("damage", 0, None, told)
        folder.delete_file(MANIFEST)
    try:
        with work_folder(store, key) as work:
            lists = read_lists(spec.data.cleaning)
            preparation = Preparation(spec, store, corpus, codec, lists, folder, work, progress)
            manifest = preparation.run(key)
            folder.sweep()
            folder.write_json(preparation.facts(), "preparation.json")
            folder.write_json(manifest.as_dict(), MANIFEST)
    except BaseException:  # also when interrupted; what was read is kept, for the next preparation
        if not folder.exists(MANIFEST):
            folder.delete_dir()
        raise
    if not spec.data.keep_read:
        for part in preparation.parts:
            forget(part)
    progress("prepare", manifest.report["kept"], manifest.report["kept"], f"wrote {key}")
    return Prepared(folder, Manifest.from_dict(store.read_json(FOLDER, key, MANIFEST)))
