"""All nine cells of family × modality build, step, score, sample and decode on tiny data."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models.base import SamplingOptions, make_generator
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import CELLS, cell_spec, prepared_in_memory


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_cell_builds_steps_scores_samples_and_decodes(family: str, modality: str) -> None:
    spec = cell_spec(family, modality)
    prepared = prepared_in_memory(spec)
    session = Session(spec, prepared)
    hooks = LocalHooks(spec)
    assert session.run(hooks).step == 6
    assert all(np.isfinite(value) for value in hooks.metrics.values())

    model = session.stepper.model.eval()
    sums = evaluate_split(model, prepared.load_split("validation"), prepared.layout, spec, seed=0)
    assert sums["examples"] == 8
    assert np.isfinite(model.summarise(sums)[model.objective()])

    drawn = model.sample(3, make_generator(0, "sample"), SamplingOptions())
    again = model.sample(3, make_generator(0, "sample"), SamplingOptions())
    assert drawn.equal(again)
    raws = [prepared.codec.decode(example) for example in drawn.detach().numpy()]
    for raw in raws:
        if modality == "text":
            assert isinstance(raw, str)
        elif modality == "image":
            assert raw.dtype == np.uint8
            assert raw.ndim == 3
        else:
            assert raw.dtype == np.float32
            assert np.abs(raw).max() <= 1
