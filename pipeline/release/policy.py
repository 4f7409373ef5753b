"""Which scores compare two models of a family, and the policy of a spec with its objective filled in.

Plain Python, in the driver.
"""

from __future__ import annotations

from pipeline.errors import SpecError
from pipeline.spec import ReleaseSpec, RunSpec

METRICS: dict[str, tuple[str, ...]] = {
    "rnn": ("nats_per_token", "perplexity"),
    "vae": ("nll_nats", "elbo_nats", "reconstruction_mse"),
    "gan": (),
}
"""Scores by which two models of a family can be compared; the first is the default. A critic's gap is not among them:
each GAN's critic has its own scale."""
METRICS_OF_TEXT = ("bits_per_char", "bits_per_byte")
METRICS_OF_SIGNALS = ("frechet",)

NO_OBJECTIVE = (
    "no score compares two GANs of tokens (each critic has its own scale); take another family, or a data.codec of "
    "signals with labels"
)


def metrics_of(run: RunSpec) -> tuple[str, ...]:
    """The scores by which two models of this spec can be compared, the default first."""
    text = run.data.codec.kind in ("bytes", "characters", "bpe")
    signals = run.data.codec.kind in ("image", "waveform", "log_mel")
    extra = METRICS_OF_TEXT if text and run.model.family.kind != "gan" else METRICS_OF_SIGNALS if signals else ()
    return METRICS[run.model.family.kind] + extra


def policy_of(run: RunSpec) -> ReleaseSpec:
    """The spec's policy; where it names nothing to improve, the family's objective. Raises: SpecError without one."""
    if run.release.improve:
        return run.release
    allowed = metrics_of(run)
    if not allowed:
        raise SpecError(f"{run.name}: {NO_OBJECTIVE}, or name a score in release.improve")
    return run.release.model_copy(update={"improve": {allowed[0]: 0.0}})
