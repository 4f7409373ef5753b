"""What a data card shows of a corpus: training examples at equal distances, whatever the shards."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.codec import make_codec
from pipeline.data.examples import SHOWN, training_examples
from pipeline.spec import ImageCodecSpec
from tests.data.prepared_sets import memory_store, write_prepared


@pytest.mark.parametrize(("rows", "shown"), [(100, 32), (32, 32), (5, 5)])
def test_examples_are_evenly_spaced_and_as_many_as_there_are(rows: int, shown: int) -> None:
    codec = make_codec(ImageCodecSpec(kind="image", size=(3, 2)))
    x = np.repeat(np.arange(rows, dtype=np.uint8), 6).reshape(rows, 1, 3, 2)
    prepared = write_prepared(memory_store(), codec.layout(("a", "b")), x, codec=codec.state())
    pictures = training_examples(prepared)
    assert len(pictures) == shown <= SHOWN["image"]
    assert [int(picture[0, 0, 0]) for picture in pictures] == [place * rows // shown for place in range(shown)]
