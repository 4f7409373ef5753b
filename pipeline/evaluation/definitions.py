"""How every score is called, measured and read, by its key without the split's prefix: what pages show.

The definitions stand beside the functions that measure; here they are put together for whoever reads scores.
"""

from __future__ import annotations

from pipeline.evaluation import metric
from pipeline.evaluation.canaries import DEFINITIONS_OF_CANARIES
from pipeline.evaluation.condition_accuracy import DEFINITIONS_OF_CONDITIONS
from pipeline.evaluation.score import Definition
from pipeline.evaluation.text_scores import DEFINITIONS_OF_TEXTS

DEFINITIONS: dict[str, Definition] = {
    **metric.DEFINITIONS,
    **DEFINITIONS_OF_CONDITIONS,
    **DEFINITIONS_OF_TEXTS,
    **DEFINITIONS_OF_CANARIES,
}
