"""What the scores of generated pictures and sound are computed from: the features of three sets of examples.

Plain PyTorch, on the driver. Workers embed generated, held-out and training examples piece by piece; put together in
order they are one `SampleFeatures`, which fidelity, diversity and novelty read alike, so that all of them speak of the
same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SampleFeatures:
    """Features and class logits of generated, held-out and training examples, float64 on the CPU.

    `generated` `[n, D]`, `held_out` `[m, D]` and `train` `[t, D]` in the space of `extractor`; the logits `[n, K]` and
    `[m, K]` are of the corpus classifier, None where the corpus has no labels. `train_rows` int64 `[t]` are the rows of
    the training split that `train` holds, ascending. Held-out examples are in a random order that the prepared set
    decides, generated ones in the order of their drawing.
    """

    generated: Tensor
    held_out: Tensor
    train: Tensor
    generated_logits: Tensor | None
    held_out_logits: Tensor | None
    train_rows: Tensor
    extractor: str
    extractor_sha256: str
