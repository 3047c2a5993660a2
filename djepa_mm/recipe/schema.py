"""What a recipe says, section by section: one YAML file is one runnable experiment. Strict and typed.

The sections `data`, `tokenizer` and `condition` are defined beside the source, the tokenizer or the kind of condition
that they build; they are found by looking through `djepa_mm.data.sources`, `djepa_mm.tokenizers` and
`djepa_mm.conditions`, so that a new one needs no change here.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, create_model, model_validator

from djepa_mm.core.masking import Order, Schedule, never_last
from djepa_mm.kinds import sections
from djepa_mm.recipe.presets import PRESETS
from djepa_mm.types import Config, Probability

Width = Annotated[int, Field(gt=0, le=65_536)]  # beyond the largest models that there are, so a slip of the pen
Blocks = Annotated[int, Field(gt=0, le=200)]
MOST_SWEEPS = 1_000  # likewise


class ModelConfig(Config):
    preset: Literal["tiny", "small", "base", "large", "huge"]
    """Sizes of encoder, predictor and head; what is given beside it wins."""
    width: Width | None = None
    depth: Blocks | None = None
    """Blocks of the context encoder, and as many of the predictor."""
    heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=100)] = 4.0
    dropout: Probability = 0.0
    """In attention, projections and MLPs."""
    streams: Literal["one", "two"] = "one"
    """One set of weights for the whole sequence, or one for the condition and one for the media (for texts)."""
    positions: Literal["learned", "rotary", "vope", "both"] = "learned"
    """A learned table over the tokenizer's fixed grid, rotary angles, or both of them; vope: rotary angles of places in
    a field of view, in which pictures of any size and aspect lie centred and as large as it is (D-JEPA-T2I)."""
    field: PositiveFloat | None = None
    """Side of vope's field of view, in tokens: pictures whose longer side has as many have rotary's own angles."""
    axes: Annotated[tuple[Literal["t", "h", "w"], ...], Field(min_length=1)] = ("t", "h", "w")
    """Axes that rotary positions turn on."""
    rotary_base: Annotated[float, Field(gt=1)] = 10_000.0
    """The slowest frequency turns about so many times more slowly than the fastest; small for a small grid."""
    qk_norm: bool = True
    """RMSNorm on the queries and keys of each head."""
    buffer_positions: bool = False
    """The predictor gives the buffer tokens learned positions too, as MAR does; the encoder's are those tokens."""
    head_positions: bool = False
    """A third learned table is added to the features that the head gets, as in MAR."""
    projector: Literal["plain", "norm", "none"] = "plain"
    """MLP of the prediction loss: with a norm before its second layer in D-JEPA's own code, none in MAR."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        width, heads = self.size("width"), self.size("heads")
        if width % heads:
            raise ValueError(f"model.width {width} does not divide into model.heads {heads}: choose a multiple")
        if width // heads % 2 and self.positions != "learned":
            raise ValueError(f"rotary positions need heads of an even width, not {width // heads}")
        if width // heads < 2 * len(self.axes) and self.positions != "learned":
            raise ValueError(
                f"rotary positions on {len(self.axes)} axes need heads of a width from {2 * len(self.axes)} on, not "
                f"{width // heads}: change model.width, model.heads or model.axes"
            )
        if self.positions == "vope" and self.field is None:
            raise ValueError("model.positions vope needs model.field: give the tokens of the longest side")
        if self.positions != "vope" and self.field is not None:
            raise ValueError(
                f"model.field belongs to model.positions vope, and they are {self.positions}: leave it out"
            )
        if self.head_positions and not self.fixed_grid:
            raise ValueError(
                "model.head_positions is a table over a fixed grid: set model.positions to learned or both"
            )
        return self

    def size(self, name: str) -> int:
        return getattr(self, name, None) or PRESETS[self.preset][name]

    @property
    def fixed_grid(self) -> bool:
        """Whether all media must have one grid of tokens."""
        return self.positions in ("learned", "both")


class FlowConfig(Config):
    kind: Literal["flow"]
    blocks: Blocks | None = None
    width: Width | None = None
    repeats: PositiveInt = 4
    """How often each masked token is used in a step, with fresh noise and time."""
    time_sampling: Literal["uniform", "logit-normal"] = "logit-normal"
    time_mean: float = 0.0
    """Of the logit-normal times in training; below 0 is nearer to noise, for tokens of many alike channels."""
    steps: PositiveInt = 25
    """Solver steps to sample a token. What D-JEPA's code counts is the points of the grid, one more."""
    solver: Literal["euler", "heun"] = "euler"
    predicts: Literal["velocity", "data"] = "velocity"
    """What the MLP gives, with the same loss; data suits tokens of many channels, such as raw pixels."""
    time_shift: PositiveFloat = 1.0
    """s of t ← t / (t + s − s·t) at sampling; above 1 spends more steps near the noise."""
    time_scale: PositiveFloat = 1000.0
    """What t = 1 is to the MLP's embedding of time; 1 in D-JEPA's own code."""


class DiffusionConfig(Config):
    kind: Literal["diffusion"]
    blocks: Blocks | None = None
    width: Width | None = None
    repeats: PositiveInt = 4
    """How often each masked token is used in a step, with fresh noise and time."""
    steps: Annotated[int, Field(ge=2, le=1000)] = 100
    """Respaced steps to sample a token."""
    solver: Literal["ddpm", "dpm-solver++"] = "ddpm"
    largest_token: PositiveFloat | None = 10.0
    """Bound of the estimated token, in sampling by ddpm and in the variance's loss: keeps a head that is not fully
    trained from running away. null is none, as in the code of MAR and D-JEPA."""


class MaskConfig(Config):
    mean: PositiveFloat = 1.0
    std: PositiveFloat = 0.25
    low: Annotated[float, Field(gt=0, le=1)] = 0.7
    high: Annotated[float, Field(gt=0, le=1)] = 1.0
    orders: Annotated[tuple[Order, ...], Field(min_length=1, strict=False)] = ("random",)
    """What is hidden is what such an order of sampling would reveal last; of several, one is drawn for each batch."""
    horizon: PositiveInt | None = None
    """Predict only so many of the hidden tokens, those that the order would reveal next, and leave the others out of
    the sequence: for orders that go one frame after the other. All of them where it is not given."""
    start: Probability = 0.0
    """Share of the batches in which less than the horizon is known. The condition shows most at the start, and such
    batches are short."""

    @model_validator(mode="after")
    def _check(self) -> MaskConfig:
        if self.low > self.high:
            raise ValueError(f"mask.low {self.low} is above mask.high {self.high}")
        if self.start and self.horizon is None:
            raise ValueError(f"mask.start {self.start:g} needs mask.horizon, the length of the start")
        return self


class LossConfig(Config):
    generation: NonNegativeFloat = 1.0
    prediction: NonNegativeFloat = 1.0
    """0 gives MAR: no target encoder in the loss."""
    target_dropped: bool = True
    """Where the condition is dropped, the target encoder does without it too. In D-JEPA's code it always has it."""


class OptimConfig(Config):
    steps: PositiveInt
    minutes: PositiveFloat | None = None
    """End after this much training even if steps are left; the schedule follows whichever is further on."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon moves the blocks' matrices by Muon (Jordan et al. 2024) and the rest by AdamW: fewer steps, each dearer."""
    lr: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine falls to a fiftieth of lr."""
    warmup_steps: NonNegativeInt = 100
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.02
    """Not on biases, norms and the head."""
    weight_decay_on: Literal["matrices", "blocks", "all"] = "matrices"
    """matrices: not on embeddings, positions, buffer and mask tokens either; blocks: on the matrices of the
    transformers' blocks alone, as in D-JEPA's code; all: on all of the rest, as in MAR's."""
    weight_decay_schedule: Literal["constant", "linear"] = "constant"
    """linear rises from 0 to weight_decay over the run."""
    eps: PositiveFloat = 1e-8
    """Of AdamW."""
    clip: PositiveFloat = 3.0
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the target encoder and the sampling weights, after their warm-up."""
    ema_schedule: Literal["constant", "linear"] = "constant"
    """linear rises from ema_decay towards 1 over the run, to 0.9999 at most."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the matrix products; losses, averages and solvers are always fp32."""
    bad_steps: PositiveInt = 10
    """A step whose loss or gradient is not finite is left out; after so many in a row the run stops."""


class ComputeConfig(Config):
    accumulate: PositiveInt = 1
    """Parts that each process takes its share of a batch in, one after the other, to save memory."""
    shard: bool = False
    """Under torchrun, weights, averages, gradients and the optimiser's state are split over the processes (FSDP2);
    else each has them whole (DDP)."""
    recompute: bool = False
    """Activation checkpointing: blocks compute again what they need on the way back, instead of keeping it."""
    compile: bool = False
    """torch.compile of the transformers' blocks; needs a C++ compiler on a CPU."""


class BatchConfig(Config):
    size: PositiveInt
    """Most items in a batch, of all processes together."""
    tokens: PositiveInt | None = None
    """Most tokens in a batch, padding counted. Batches hold items of like length."""
    item_tokens: PositiveInt | None = None
    """Most tokens of an item that training sees. Of more, so many are drawn anew at each reading, and the others are
    not in the sequence at all."""
    cache: bool = False
    """Tokenize the corpus once, before training, and keep the tokens in memory: of a VAE that is sampled from mean and
    deviation, of flips both. `djepa-mm encode` does the same on the disk, for more than one run."""
    workers: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Processes that read items; they have nothing to do where the corpus is cached."""
    max_broken_share: Probability = 0.05
    """Stop when more than this share of the corpus cannot be read."""


class FeedbackConfig(Config):
    """Statistics of what is sampled of the corpus, which steer what is sampled next (D-JEPA-T2I, section 2.3)."""

    wanted: dict[str, Literal["uniform"] | dict[str, Probability]] = Field(default={})
    """By class of attributes: uniform, or a table of frequencies, what is left of 1 going to the others alike. Classes:
    numerals, colours, shapes, textures, spatial, label, style, source, or one's own. The
    others are counted alone."""
    words: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(default={})
    """More names by class, each with its other forms: animals: [cat=cats=kitten, dog=dogs]."""
    visits: Annotated[int, Field(ge=2, le=100)] = 2
    """An item whose attributes are over their frequencies is taken at one in so many epochs: 2 drops half of them."""
    judged: NonNegativeInt = 0
    """Items that are generated and judged before each checkpoint, of a corpus that can tell whether they fit."""
    step: NonNegativeFloat = 1.0
    """How far scores move frequencies: by exp(step · (mean of the class − score)) each time, 4-fold at most in all."""

    @model_validator(mode="after")
    def _check(self) -> FeedbackConfig:
        for kind, table in self.wanted.items():
            if kind in ("size", "aspect"):
                raise ValueError(f"feedback.wanted.{kind}: it is drawn at each reading, and not thinned: leave it out")
            if table != "uniform" and (total := sum(table.values())) > 1 + 1e-6:
                raise ValueError(f"feedback.wanted.{kind}: its frequencies add up to {total:g}: make it 1 or less")
        for kind, names in self.words.items():
            if kind in ("size", "aspect", "label", "style", "source"):
                raise ValueError(f"feedback.words.{kind}: such a class is there, and is of no words: take another name")
            if not kind or "/" in kind or not all(part.strip() for name in names for part in name.split("=")):
                raise ValueError(f"feedback.words.{kind}: expected names such as cat=cats, and a class without /")
        if self.judged and not self.wanted:
            raise ValueError("feedback.judged needs frequencies to move: give feedback.wanted, or set judged to 0")
        return self


class SampleConfig(Config):
    steps: PositiveInt = 64
    """T, autoregressive steps."""
    guidance: NonNegativeFloat = 1.0
    guidance_schedule: Literal["constant", "linear"] = "linear"
    temperature: NonNegativeFloat = 1.0
    order: Order = "random"
    """In which places are revealed: anywhere, one t after the other, all t of a place together, or as numbered."""
    schedule: Schedule = "cosine"
    """How many places a step reveals: few at first, or always about as many."""
    leave_one: bool = False
    """Every step but the last leaves one place, which linear guidance never counts as known: as in the code of MAR and
    D-JEPA, where its share of the guidance ends at (N − 1)/N."""
    sweeps: Annotated[int, Field(ge=0, le=MOST_SWEEPS)] = 0
    """When all is drawn, how many times some of it is hidden and drawn anew: mends what was drawn before there was much
    to fit to. For `order` random and tubes, where any place may come last."""
    sweep_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Of the places, hidden by the first sweep; evenly fewer by the others, a single place by the last. A sweep has its
    share of `steps`."""


class RunConfig(Config):
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 20
    """Steps between lines in log.jsonl and TensorBoard."""
    sample_every: PositiveInt | None = None
    """Steps between sample sheets; none but the last where it is not given."""
    samples: PositiveInt = 16
    """Items on a sample sheet."""
    texts: tuple[str, ...] = ()
    """What the samples say, for a text condition."""
    save_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    tracker: Literal["trackio", "wandb"] | None = None
    """Where the log goes besides log.jsonl and TensorBoard: Trackio, on this machine, or Weights & Biases."""


class Recipe(Config):
    """One experiment: what the data is, how it becomes tokens, which model learns them, and how it samples."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder, runs/<name>."""
    data: Any  # a SourceConfig; `schema_class` puts the union of those that are there
    tokenizer: Any  # a TokenizerConfig, likewise
    condition: Any  # a ConditionConfig, likewise
    model: ModelConfig
    head: Annotated[FlowConfig | DiffusionConfig, Field(discriminator="kind")]
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig
    batch: BatchConfig
    compute: ComputeConfig = ComputeConfig()
    feedback: FeedbackConfig | None = None
    sample: SampleConfig = SampleConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        kind, along = self.condition.kind, self.condition.along
        if along and self.model.fixed_grid:
            raise ValueError(f"a condition of the kind {kind} has no fixed grid: set model.positions to rotary")
        needed = () if self.model.positions == "learned" else (*along, *self.condition.own_axes)
        if missing := [axis for axis in needed if axis not in self.model.axes]:
            raise ValueError(f"a condition of the kind {kind} lies on the axis {missing[0]}: add it to model.axes")
        if self.sample.guidance != 1 and self.condition.drop == 0:
            raise ValueError(
                f"sample.guidance {self.sample.guidance} needs a model trained without its condition too: "
                "set condition.drop above 0, or sample.guidance to 1"
            )
        if self.sample.sweeps and (why := never_last(self.sample.order, self.mask.horizon)):
            raise ValueError(f"sample.sweeps {self.sample.sweeps}: {why}, so nothing is drawn anew: set it to 0")
        if self.compute.shard and self.optim.optimizer == "muon":
            raise ValueError("optim.optimizer muon needs whole matrices: set compute.shard to false, or take adamw")
        if self.loss.generation == 0:
            raise ValueError("loss.generation 0 trains no head to sample with: set it above 0")
        return self


# Keys of a tokenizer that change none of the tokens of media that it takes, or only the way to the same weights
TOKENS_FREE = {
    "vocoder", "max_duration_s", "size", "frames", "frame_rate", "vary", "tile", "tile_above", "model", "allow_pickle",
    "path", "media", "sha256",
}  # fmt: skip

SOURCES = ("djepa_mm.data.sources", "djepa_mm.tokenizers")  # a modality's file may hold the source of its corpora


@cache
def schema_class() -> type[Recipe]:
    """The recipe's model with all sources, tokenizers and kinds of condition that are there."""
    return create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        data=(sections("source", *SOURCES), ...),
        tokenizer=(sections("kind", "djepa_mm.tokenizers"), ...),
        condition=(sections("kind", "djepa_mm.conditions"), ...),
    )
