"""The runs that are killed: a conf of each family, small, whose steps take milliseconds because they compute."""

from __future__ import annotations

from pathlib import Path

STEPS = 400

COMMON = [
    f"training.steps={STEPS}",
    "training.max_seconds=null",  # a schedule over time would make every run another
    "training.precision=float32",
    "training.threads_per_worker=1",
    "training.report_every=10",
    "training.checkpoint_every=20",
    "training.validate_every=100",
    "training.warmup_steps=20",
    "training.ema_decay=0.99",
    "training.max_failures=100",
    "evaluation.nll_samples=5",
    "evaluation.samples=20",
    "evaluation.training_samples=200",
]
CASES: dict[str, list[str]] = {
    "image_vae": ["data.limit=400", "model.backbone.hidden=[128,128]", "training.batch_size=64"],
    "text_rnn": ["data.limit=60", "model.backbone.hidden_size=64", "training.batch_size=16"],
    "audio_gan": [
        "data.limit=300",
        "data.codec.num_samples=2048",
        "model.backbone.channels=[8,16,32]",
        "model.family.critic_steps=2",
        "training.batch_size=8",
    ],
}
"""By the name of the conf."""


def arguments(case: str, storage: Path, workers: int) -> list[str]:
    """What follows `atelier train`; with 0 workers the driver trains in its own process."""
    overrides = [f"storage={storage}", *COMMON, *CASES[case], f"training.num_workers={workers}"]
    return [f"conf/{case}.yaml", *(part for override in overrides for part in ("--set", override))]
