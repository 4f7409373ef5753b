"""How every score is called, measured and read, by its key without the split's prefix: what pages show.

The definitions stand beside the functions that measure; here they are put together for whoever reads scores.
"""

from __future__ import annotations

from pipeline.evaluation import metric
from pipeline.evaluation.canaries import DEFINITIONS_OF_CANARIES
from pipeline.evaluation.condition_accuracy import DEFINITIONS_OF_CONDITIONS
from pipeline.evaluation.score import Definition
from pipeline.evaluation.text_scores import DEFINITIONS_OF_TEXTS

FORGETTING = {
    "before": "Of the corpus that the model was trained on whose weights this one began with, as that model scores it.",
    "after": "Of the same corpus, as this model scores it after its training on another.",
    "forgotten": "What the training on another corpus took: the score after it minus the score before.",
}
"""How the three scores of `forgetting` are read."""

DEFINITIONS: dict[str, Definition] = {
    **metric.DEFINITIONS,
    **DEFINITIONS_OF_CONDITIONS,
    **DEFINITIONS_OF_TEXTS,
    **DEFINITIONS_OF_CANARIES,
    **{
        f"{name}_{when}": Definition(f"{known.title}, old corpus, {when}", known.unit, known.better, reading)
        for name in ("bits_per_char", "nats_per_token", "nll_nats", "frechet")
        for known in (metric.DEFINITIONS[name],)
        for when, reading in FORGETTING.items()
    },
}
