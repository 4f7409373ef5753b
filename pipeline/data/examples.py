"""A few training examples as the codec gives them back: what a data card shows of a corpus, on the driver."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.data.layout import Modality
from pipeline.data.prepared import Prepared

SHOWN: dict[Modality, int] = {"image": 32, "audio": 8, "text": 3}


def training_examples(prepared: Prepared) -> list[Any]:
    """Raw examples at equal distances through the training split: strings, pictures uint8 `[H, W, C]`, or sounds
    float32 `[T]`; as they are after cleaning and encoding, which is what a model learns from.

    Raises: PreparedDataError when a shard is missing or was changed.
    """
    rows, count = prepared.manifest.splits["train"]["rows"], SHOWN[prepared.layout.modality]
    count = min(count, rows)
    places = torch.arange(count, dtype=torch.int64) * rows // max(count, 1)
    codec, stored = prepared.codec, prepared.load_rows("train", places)
    return [codec.decode(example.numpy()) for example in prepared.layout.to_model(stored)]
