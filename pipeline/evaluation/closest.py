"""The generated examples that are most like a training example, side by side with it, as people look at them.

On the driver, once an evaluation has said which they are: generated examples are drawn again, chunk by chunk, and come
out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.data.prepared import Prepared
from pipeline.evaluation.drawing import chunks, examples_of, held_out_order, training_rows
from pipeline.evaluation.evaluate import load_subject
from pipeline.evaluation.extractors.encoder import one_thread
from pipeline.evaluation.score import Score
from pipeline.spec import RunSpec

OF_SIGNALS, OF_TEXTS = "signal_singled_out", "copied_share"
COPY = 0.01
"""Of held-out examples so many are by construction as like a training example as what is called a copy."""


def closest_pairs(spec: RunSpec, prepared: Prepared, bundle: Path, scores: Mapping[str, Score]) -> list[dict[str, Any]]:
    """The pairs that stand behind the scores of `evaluate(spec, prepared, bundle)`: {"sample": raw, "training": raw,
    "distance": value, …} as `report.findings.nearest_section` takes them; empty where none were looked for."""
    by_name = {key.partition("/")[2]: score for key, score in scores.items()}
    if OF_TEXTS in by_name:
        return [
            {
                "sample": pair["text"],
                "training": pair["source"],
                "distance": 1 - pair["copied_share"],
                "finding": f"{pair['span'][1] - pair['span'][0]} characters in one piece",
            }
            for pair in by_name[OF_TEXTS].shown
        ]
    shown = by_name[OF_SIGNALS].shown if OF_SIGNALS in by_name else ()
    if not shown:
        return []
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    order, rows = held_out_order(subject), training_rows(subject)
    wanted = {int(pair["generated"]) for pair in shown}
    drawn: dict[int, Any] = {}
    for chunk in chunks(subject):
        mine = [number for number in wanted if chunk.which == "generated" and chunk.start <= number < chunk.stop]
        if mine:
            with one_thread(), torch.no_grad():
                x = examples_of(subject, chunk, order, rows)
            drawn |= {number: subject.codec.decode(x[number - chunk.start].cpu().numpy()) for number in mine}
    trained = torch.tensor([int(pair["train_row"]) for pair in shown]).unique()
    x = subject.layout.to_model(prepared.load_rows("train", trained))
    training = {row: subject.codec.decode(example.numpy()) for row, example in zip(trained.tolist(), x, strict=True)}
    return [
        {
            "sample": drawn[int(pair["generated"])],
            "training": training[int(pair["train_row"])],
            "distance": pair["distance"],
            "held_out_share": pair["held_out_share"],
            "finding": "copy" if pair["held_out_share"] <= COPY else None,
        }
        for pair in shown
    ]
