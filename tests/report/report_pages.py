"""Pages of small runs of each modality, and what can be found besides the scores, for the tests of the report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.latent import LatentView, Map, Usage, Walk
from pipeline.evaluation.metric import Score
from pipeline.report.comparison import RunFacts
from pipeline.report.page import build_report
from pipeline.spec import make_spec

LAYOUTS = {
    "text": {"modality": "text", "view": "tokens", "shape": [8], "vocabulary": 65},
    "image": {"modality": "image", "view": "signal", "shape": [1, 4, 4]},
    "audio": {"modality": "audio", "view": "signal", "shape": [1, 256], "sample_rate_hz": 8000},
}
CODECS = {
    "text": ({"kind": "bytes"}, {"kind": "rnn"}, {"kind": "recurrent"}),
    "image": ({"kind": "image", "size": [4, 4]}, {"kind": "vae"}, {"kind": "mlp"}),
    "audio": ({"kind": "waveform", "num_samples": 256}, {"kind": "gan"}, {"kind": "mlp"}),
}
SAMPLES = {
    "text": ["once upon", "a time <b>&</b>"],
    "image": [np.arange(16, dtype=np.uint8).reshape(4, 4, 1), np.full((4, 4, 1), 200, np.uint8)],
    "audio": [np.linspace(-1, 1, 256, dtype=np.float32), np.zeros(256, np.float32)],
}


def page(modality="image", out=None, **changes):
    codec, family, backbone = CODECS[modality]
    spec = make_spec(
        {
            "name": "a-run",
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
            "model": {"family": family, "backbone": backbone},
        }
    )
    manifest = {
        "key": "3f2a",
        "corpus": {"fingerprint": "ab" * 32, "licence": "CC0 <i>", "source": {"kind": "builtin", "name": "digits"}},
        "split": {"kind": "hash", "validation": 0.05, "test": 0.1},
        "codec": {"spec": codec},
        "layout": LAYOUTS[modality],
        "splits": {"train": {"records": 9, "rows": 9, "characters": 0, "labels": {"seven": 4, "two": 5}}},
        "report": {
            "read": 12,
            "kept": 9,
            "stages": [{"stage": "read", "left": 12}, {"stage": "decoded", "left": 10}],
            "dropped": {"empty text": 1},
            "examples": {"empty text": [{"origin": "y/2.txt", "detail": "all white space"}]},
            "cleaned": {"unicode": 2},
            "personal_data": {"email": 3},
            "facts": {"encoding": {"utf-8": 11, "cp1252": 1}},
            "lengths": {"unit": "characters", "min": 1, "median": 2.5, "mean": 3.25, "p95": 5.0, "max": 7},
            "unknown_characters": 0,
            "duplicates": {
                "clusters": 1,
                "records_in_clusters": 2,
                "largest": 2,
                "near_pairs": 1,
                "examples": [{"size": 2, "origins": ["a.txt", "b.txt"]}],
            },
            "leakage": {"units": 0},
            "notes": ["validation has 0.0% of the records"],
            "quarantined": [{"origin": "x/1.png", "reason": "truncated"}],
            "quarantined_count": 2,
        },
    }
    values = {
        "spec": spec,
        "manifest": manifest,
        "history": [{"step": s, "train/loss": 5.0 - s} for s in range(4)],
        "scores": {"test/frechet": Score(3.25, "squared feature distance", "lower", {"extractor": "c"}, (3.1, 3.4))},
        "samples": SAMPLES[modality],
        "seconds": {"train": 61.0, "total": 70.0},
        "versions": {"torch": "2.13.0"},
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }
    return build_report(out, **{**values, **changes})


VERDICT = {
    "good": {"answer": "yes", "findings": ["A finding <b>in words</b>."]},
    "varied": {"answer": "unclear", "findings": []},
    "new": {"answer": "no", "findings": ["3 of 64 samples are near copies.", "The C_T test rejects."]},
}
GATE = {
    "outcome": "reject",
    "reason": "It copies the training set.",
    "rules": [
        {"kind": "improve", "score": "frechet", "wanted": "by 5%", "state": "met", "words": "It does.",
         "comparison": {"champion": 4.25, "challenger": 3.25, "gain": 1.0, "interval": (0.5, 1.5)}},
        {"kind": "limit", "score": "copies", "wanted": "at most 0.05", "state": "broken", "words": "Too many.",
         "value": 0.3, "interval": [0.25, 0.375], "comparison": None},
        {"kind": "keep", "score": "recall", "wanted": "within 0.02", "state": "unknown", "words": ""},
    ],
    "findings": ["copies"],
}  # fmt: skip
WARNINGS = [
    {"kind": "posterior_collapse", "title": "Posterior collapse", "message": "the KL is 0.02 nats <here>", "step": 1200,
     "last_step": 3000, "times": 4, "meaning": "The decoder ignores z.", "advice": "Set kl_warmup."},
    {"kind": "rolled_back", "title": "Rolled back", "message": "back to step 10", "step": 13, "last_step": 13,
     "times": 1, "meaning": "It exploded.", "advice": "Lower training.lr."},
]  # fmt: skip
TEMPERATURE = {
    "self_bleu": [(0.5, 0.9, 0.85, 0.95), (1.0, 0.4, 0.3, 0.5), (1.5, 0.2, 0.1, 0.3)],
    "bits_per_char": [(0.5, 2.0), (1.0, 1.8), (1.5, 2.4)],
}
SURPRISE = [("once", 3.5), (" ", 0.1), ("<upon>", 9.0), ("\n", 0.0), ("", 1.6), ("a", None)] * 30

INHERITED = {
    "source": "models:/old<1>/3",
    "summary": "2 tensors kept, 1 resized, 1 made new; 4 of 6 tokens were known",
    "new_tokens": ["<|user|>", "é"],
    "new_labels": [],
    "tensors": [
        {"name": "a.weight", "fate": "kept", "how": ""},
        {"name": "b.weight", "fate": "resized", "how": "4×2 to 6×2 along its tokens"},
        {"name": "c.weight", "fate": "new", "how": "3 there, 5 here"},
    ],
}


def nearest_pairs(modality: str) -> list[dict[str, Any]]:
    sample, training = SAMPLES[modality]
    return [
        {"sample": sample, "training": training, "distance": 2.5, "reference": 1.25, "origin": "b<1>.png"},
        {"sample": training, "training": training, "distance": 0.5, "held_out_share": 0.0125, "finding": "copy"},
    ]


def latent_view(modality: str) -> LatentView:
    """A view with walks of three frames, and held-out examples of two labels."""
    raws = [SAMPLES[modality][i % 2] for i in range(3)]
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 0.5], [3.0, 0.25]], dtype=torch.float64)
    return LatentView(
        latent_size=3,
        interpolations=[Walk("example 1 to example 2", [0.0, 0.5, 1.0], raws, 0, (raws[0], raws[1]))],
        usage=Usage([0.5, 2.0, 0.001], [0.4, 0.9, 0.001], [1, 0, 2], [1, 0]),
        from_prior=tuple(Walk(f"dimension {d}", [-3.0, 0.0, 3.0], raws, 2) for d in (1, 0)),
        from_example=(Walk("dimension 1", [-3.0, 0.0, 3.0], raws, 1),),
        example=raws[0],
        map=Map(points, ["one", "two", "one", ""], (0.6, 0.3)),
        num_examples=4,
    )


def everything(modality: str) -> dict[str, Any]:
    """Arguments for every optional section."""
    return {
        "verdict": VERDICT,
        "gate": GATE,
        "warnings": WARNINGS,
        "temperature": TEMPERATURE,
        "surprise": SURPRISE,
        "nearest": nearest_pairs(modality),
        "latent": latent_view(modality),
        "inherited": INHERITED,
    }


PROTOCOL = {"split": "test", "examples": 500, "seed": 0, "extractor": "c"}


def score_of(value, interval=(0.0, 0.0), **protocol):
    low, high = interval
    bounds = (value + low, value + high) if interval != (0.0, 0.0) else None
    return Score(value, "squared feature distance", "lower", {**PROTOCOL, **protocol}, bounds)


def run_of(label, score=None, modality="image", prepared="3f2a", **changes):
    codec, family, backbone = CODECS[modality]
    spec = make_spec(
        {
            "name": "a-run",
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
            "model": {"family": family, "backbone": backbone},
            **changes,
        }
    )
    return RunFacts(
        label=label,
        spec=spec,
        prepared=prepared,
        layout=LAYOUTS[modality],
        history=[{"step": s, "train/loss": 5.0 - s, "validation/loss": 4.0 - s} for s in range(4)],
        scores={"test/frechet": score} if score else {},
        samples=SAMPLES[modality],
        seconds={"total": 61.0},
    )
