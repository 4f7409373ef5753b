"""The spec's `model`: a family's objective over a backbone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.reading import Count, Rate, Share, Strict


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} must be odd, so that a convolution keeps the length")
    return kernel


Kernel = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class RnnSpec(Strict):
    """An autoregressive language model over tokens, trained by truncated back-propagation through time.

    `state_reset` is the chance that a lane of continuous text starts a step from an empty state instead of the
    carried one. Without it the empty state is seen once in a training, and a held-out lane that starts from it
    can stay lost (6.4 nats a character against 1.6 was seen).

    Of examples longer than `window` tokens a step reads that many (rounded up to whole frames), and the state is
    carried to the example's next step. `binarise: dynamic` draws each grey pixel as a black or white one, anew every
    time it is seen (Salakhutdinov and Murray 2008), and models what was drawn.

    Pixels and samples are numbers as well as tokens, and may be seen directly: `history` counts the tokens before (of
    a picture's row: the pixels, with all their channels), `rows_above` and `columns_above` the pixels above, an odd
    number centred on the pixel. They enter the recurrence, and the hidden layers `readout` between its state and the
    softmax. With `frame` above 1 the recurrence steps once in that many tokens, and the readout, from the frames
    before and these neighbours, gives each of a frame's tokens (SampleRNN, Mehri et al. 2017, section 2).
    """

    kind: Literal["rnn"]
    tied_embeddings: bool = False
    state_reset: Share = 0.01
    window: Count = 1024
    binarise: Literal["dynamic"] | None = None
    history: Annotated[int, Field(ge=0)] = 0
    rows_above: Annotated[int, Field(ge=0)] = 0
    columns_above: Annotated[int, Field(ge=1)] = 7
    readout: tuple[Count, ...] = ()
    frame: Count = 1

    @model_validator(mode="after")
    def _parts_fit(self) -> RnnSpec:
        if self.columns_above % 2 == 0:
            raise ValueError(f"columns_above {self.columns_above} must be odd: as many to the left as to the right")
        if self.frame > 1 and not self.readout:
            raise ValueError(
                f"frame {self.frame}: tokens within a frame are told apart by a readout; set readout: [256]"
            )
        if self.tied_embeddings and self.readout:
            raise ValueError("tied_embeddings and readout: the softmax of a readout has its own weights; choose one")
        return self


class VaeSpec(Strict):
    """A variational autoencoder (Kingma and Welling 2014) with a diagonal Gaussian posterior.

    Signals: `likelihood` is the codec's unless said here; `discretised_logistic` is that of 8-bit pictures and 16-bit
    samples (Salimans et al. 2017), whose bits a dimension compare with those of other models. `width`: the learned
    spread of a Gaussian or logistic is one for all values, or one for each. `binarise: dynamic` draws each pixel anew,
    as Bernoulli with the pixel's grey level, every time it is seen (Salakhutdinov and Murray 2008).
    The code: `prior: flow` is learned with the rest, which costs a quarter more time a step and is worth 4 nats on
    MNIST. `beta` weighs the KL term (Higgins et al. 2017); it rises from 0 over the first `kl_warmup` of the training,
    linearly, or in `kl_cycles` that each begin at 0 again (Fu et al. 2019). `free_bits_nats` is the least KL a latent
    unit is charged for (Kingma et al. 2016), or the whole code `latent_size` times that, where the prior is learned or
    samples are several. `importance_samples` above 1 trains the importance-weighted bound instead (Burda et al.
    2016).
    Before each step the encoder takes `aggressive_steps` of its own, until a validation finds that its codes say no
    more of the examples than at the one before, at most for half of the training (He et al. 2019).
    `dropout` falls on what the encoder sees in an example, `word_dropout` hides tokens from the decoder of text.
    """

    kind: Literal["vae"]
    latent_size: Count = 40
    likelihood: Literal["bernoulli", "gaussian", "discretised_logistic"] | None = None
    width: Literal["shared", "per_dimension"] = "shared"
    binarise: Literal["dynamic", "threshold"] | None = None
    prior: Literal["normal", "flow"] = "normal"
    beta: Annotated[float, Field(ge=0)] = 1.0
    kl_warmup: Share = 0.0
    kl_cycles: Count = 1
    free_bits_nats: Annotated[float, Field(ge=0)] = 0.0
    importance_samples: Count = 1
    aggressive_steps: Annotated[int, Field(ge=0)] = 0
    dropout: Share = 0.0
    word_dropout: Share = 0.0

    @model_validator(mode="after")
    def _parts_agree(self) -> VaeSpec:
        if self.kl_cycles > 1 and self.kl_warmup == 0:
            raise ValueError(f"kl_cycles {self.kl_cycles} need kl_warmup, the share of the training that they fill")
        if self.prior == "flow" and self.latent_size < 2:
            raise ValueError("prior 'flow' couples one half of the code with the other: latent_size must be 2 or more")
        if self.binarise is not None and self.likelihood not in (None, "bernoulli"):
            raise ValueError(f"binarise {self.binarise!r} makes zeros and ones; likelihood must be 'bernoulli'")
        return self


class MlpBackboneSpec(Strict):
    """Fully connected layers over the flattened signal.

    `norm: layer` normalises each example's hidden values (Ba et al. 2016); `residual` adds a layer's input to its
    output where both have the same width (He et al. 2016). On MNIST a VAE was 4 nats better with the norm after 3,000
    steps that took no longer, and 2 more with the sum and SiLU.
    """

    kind: Literal["mlp"]
    hidden: tuple[Count, ...] = (512, 512)
    norm: Literal["none", "layer"] = "none"
    residual: bool = False
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "tanh"] = "relu"


class ConvBackboneSpec(Strict):
    """Strided convolutions down and nearest-neighbour upsampling with convolutions back, in one or two
    dimensions; one level a width in `channels`, from the signal inwards."""

    kind: Literal["conv"]
    channels: tuple[Count, ...] = (32, 64, 128)
    kernel: Kernel = 5
    stride: Annotated[int, Field(ge=2)] = 2
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "tanh"] = "leaky_relu"


class ResnetBackboneSpec(Strict):
    """Residual blocks (He et al. 2016, identity mappings) in one or two dimensions: each width in `channels` is a level
    of `blocks` blocks, and from each level to the next the signal shrinks by `stride`; back, it grows by repetition.

    `norm: group` normalises the channels of an example in groups (Wu and He 2018); nothing is normalised over the
    batch.
    """

    kind: Literal["resnet"]
    channels: tuple[Count, ...] = (32, 64, 128)
    blocks: Count = 1
    kernel: Kernel = 3
    stride: Annotated[int, Field(ge=2)] = 2
    norm: Literal["none", "group"] = "none"
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "tanh"] = "silu"


class RecurrentBackboneSpec(Strict):
    """Stacked GRU or LSTM layers over embedded tokens.

    `dropout` falls on what each layer gives, anew at every step (Zaremba et al. 2014); with `variational` one mask an
    example serves all its steps, on what goes in and what comes out, and `embedding_dropout` takes whole symbols out
    of an example (Gal and Ghahramani 2016). `norm: layer` normalises what each layer gives (Ba et al. 2016).
    """

    kind: Literal["recurrent"]
    cell: Literal["gru", "lstm"] = "lstm"
    hidden_size: Count = 256
    layers: Count = 1
    embedding_size: Count = 64
    dropout: Share = 0.0
    variational: bool = False
    embedding_dropout: Share = 0.0
    norm: Literal["none", "layer"] = "none"


SignalBackboneSpec = Annotated[MlpBackboneSpec | ConvBackboneSpec | ResnetBackboneSpec, Field(discriminator="kind")]

AnyBackboneSpec = Annotated[
    MlpBackboneSpec | ConvBackboneSpec | ResnetBackboneSpec | RecurrentBackboneSpec, Field(discriminator="kind")
]


class GumbelSpec(Strict):
    """Generated tokens as samples through which gradients pass: the Gumbel-softmax (Jang et al. 2017).

    Its temperature goes geometrically from `temperature` to `final_temperature` over the training: high ones are soft
    and their gradients steady, low ones are nearly one-hot. `straight_through` shows the critic one-hots and takes the
    gradients of the soft ones.
    """

    temperature: Rate = 1.0
    final_temperature: Rate = 0.5
    straight_through: bool = True


class PretrainingSpec(Strict):
    """A generator of text that begins as a language model: for the first `share` of the training it learns the next
    token of real texts by maximum likelihood, at `lr_scale` times the learning rate, and only then from the critic (Yu
    et al. 2017, section 3; Nie et al. 2019). The critic begins a tenth of that time earlier, on what it writes by then.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lr_scale: Rate = 10.0


class GanSpec(Strict):
    """A generative adversarial network: a generator and a critic, each a phase.

    `loss: wasserstein` with `gradient_penalty` is WGAN-GP (Gulrajani et al. 2017); the others are the minimax
    and non-saturating losses (Goodfellow et al. 2014), least squares (Mao et al. 2017) and hinge (Lim and Ye
    2017). `real_gradient_penalty` weighs R1 (Mescheder et al. 2018); `spectral_norm` divides the critic's layers by
    their largest singular values (Miyato et al. 2018). `augment` changes what the critic sees, real or generated, by
    one differentiable policy (Zhao et al. 2020), for corpora of a few thousand examples or fewer: `colour`,
    `translation` and `cutout` for pictures, `shift`, `gain` and `time_mask` for sound. `phase_shuffle` moves the
    critic's activations of a waveform by up to that many samples a level (Donahue et al. 2019). A generator of tokens
    gives soft one-hots or, with `gumbel`, samples; under a recurrent backbone it writes them one after the other, each
    fed back (Press et al. 2017), and the critic needs a `critic_backbone` of its own; there `pretraining` lets it begin
    as a language model. Without, no text is ever shown to it.
    """

    kind: Literal["gan"]
    latent_size: Count = 64
    loss: Literal["wasserstein", "minimax", "non_saturating", "least_squares", "hinge"] = "wasserstein"
    gradient_penalty: Annotated[float, Field(ge=0)] = 10.0
    real_gradient_penalty: Annotated[float, Field(ge=0)] = 0.0
    spectral_norm: bool = False
    critic_steps: Count = 5
    critic_lr_scale: Rate = 1.0
    augment: tuple[Literal["colour", "translation", "cutout", "shift", "gain", "time_mask"], ...] = ()
    phase_shuffle: Annotated[int, Field(ge=0)] = 0
    gumbel: GumbelSpec | None = None
    pretraining: PretrainingSpec | None = None
    critic_backbone: SignalBackboneSpec | None = None


AnyFamilySpec = Annotated[RnnSpec | VaeSpec | GanSpec, Field(discriminator="kind")]


class ConditionSpec(Strict):
    """What a sample may be asked for, the same way in every family.

    `on: [label]` is the record's class, `on: [prompt]` its text prompt (`data.prompt`), both may be given. Each becomes
    a part of one vector of `size` numbers that the networks see beside the example or the noise. `dropout` is the
    chance that an example's condition is hidden from them in training, so that they also learn what to do without.
    """

    on: tuple[Literal["label", "prompt"], ...] = ()
    size: Count = 64
    dropout: Share = 0.0


class ModelSpec(Strict):
    """Which generative model: a family's objective over a backbone, and what its samples may be asked for."""

    family: AnyFamilySpec
    backbone: AnyBackboneSpec
    condition: ConditionSpec = ConditionSpec()
