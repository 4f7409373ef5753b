"""The warnings of health by name: what each means, and what to do about it. Read by the loop, the page and a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a warning of this name means, in a sentence or two, and what usually helps."""

    title: str
    meaning: str
    advice: str


KINDS = {
    "non_finite": Kind(
        "Loss not finite",
        "A loss, a norm or a weight became infinite or not a number.",
        "Lower training.lr, set training.clip_norm or training.health.rollback; if it comes back at the same rows, "
        "look at these.",
    ),
    "exploding_gradient": Kind(
        "Exploding gradient",
        "Gradients are suddenly many times larger than they were: the next steps may undo what was learnt.",
        "Set training.clip_norm near the usual norm (the curve shows it), lower training.lr, or warm up longer.",
    ),
    "exploding_weights": Kind(
        "Exploding weights",
        "Weights grow out of all proportion: the learning rate is too high for this model.",
        "Lower training.lr, or set training.weight_decay with optimizer adamw.",
    ),
    "loss_rising": Kind(
        "Loss rising",
        "The training loss goes up again and stays up: the training loses what it had gained.",
        "Lower training.lr, set training.clip_norm, or take schedule: cosine.",
    ),
    "overfitting": Kind(
        "Training and held-out scores part",
        "The model still gets better on what it trains on and worse on what it never saw: it learns examples by heart.",
        "Set training.early_stopping (or training.keep_best), raise dropout or training.weight_decay, take a smaller "
        "model, or bring more data.",
    ),
    "posterior_collapse": Kind(
        "Posterior collapse",
        "The decoder ignores z: q(z | x) is the prior whatever x is, and the model is no more than its decoder.",
        "Set model.family.kl_warmup (0.3, say), free_bits_nats or, for text, word_dropout; or weaken the decoder.",
    ),
    "mode_collapse": Kind(
        "Mode collapse",
        "The generator makes the same example, or a handful of them, whatever the noise.",
        "Take loss: wasserstein with gradient_penalty, raise critic_steps, or lower training.lr.",
    ),
    "critic_lag": Kind(
        "Critic lags behind",
        "The critic scores generated examples above real ones: what it tells the generator leads away from the data.",
        "Raise model.family.critic_steps or critic_lr_scale.",
    ),
    "critic_overfitting": Kind(
        "Critic learns by heart",
        "The critic scores held-out real examples as it scores generated ones, and only those it trains on as real.",
        "Bring more data or augment it, stop earlier, or take a smaller critic.",
    ),
    "dead_generator": Kind(
        "Dead generator",
        "The generator learns nothing: its gradient has vanished, or it gives blank examples.",
        "Take loss: non_saturating, hinge or wasserstein with gradient_penalty; lower critic_steps.",
    ),
    "checkpoint_refused": Kind(
        "Checkpoint refused",
        "The newest checkpoint was damaged, half-written or of another format; the one before was taken, and its steps "
        "were taken again.",
        "Look at the disk or the store: what was written there came back changed.",
    ),
    "out_of_memory": Kind(
        "Out of memory",
        "A step did not fit into memory, and was taken again with fewer examples at once.",
        "Set training.micro_batch to the number that fits, or leave it at auto; or lower training.batch_size.",
    ),
    "not_compiled": Kind(
        "Not compiled",
        "The compiler could not do what training.compile asks for: these phases run as they were written, as fast as "
        "without it, with the same results.",
        "Set training.compile to false; or mend what it names (a missing C++ compiler, say).",
    ),
    "rolled_back": Kind(
        "Rolled back",
        "The training exploded and went on from its last checkpoint with a smaller learning rate.",
        "Lower training.lr to what it went on with, so that the next training need not go back.",
    ),
}
