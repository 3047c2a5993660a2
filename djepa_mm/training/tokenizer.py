"""Training a tokenizer of our own: an autoencoder of raw tokens, another task for the one loop."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from djepa_mm.conditions.none import NoConditionConfig
from djepa_mm.core.types import TokenBatch
from djepa_mm.data.batches import Portion, Share
from djepa_mm.data.check import check_media
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.data.drawing import BEFORE, drawing, item_seed
from djepa_mm.data.reading import KeptCorpus
from djepa_mm.data.streams import open_corpus
from djepa_mm.errors import UserError
from djepa_mm.media.sheet import sheet
from djepa_mm.ranks import current, joined, restarts
from djepa_mm.recipe.build import check_room
from djepa_mm.recipe.schema import TOKENS_FREE
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.tokenizers.autoencoder import Autoencoder, Disturbance, Reconstruction
from djepa_mm.training.adversarial import PatchDiscriminator, deception, detection
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.dealt import Dealt, Whole, gradients_stay_here
from djepa_mm.training.loop import Outcome, Trainer, check_folder
from djepa_mm.training.optimizers import build_optimizers
from djepa_mm.training.perceptual import PerceptualLoss
from djepa_mm.training.state import Constant, SameCorpus, Section, TrainState
from djepa_mm.training.task import Group, Learned, Report, Update, autocast
from djepa_mm.training.wrap import wrap
from djepa_mm.types import BrokenItem, Progress, RawTokens, Source, Tokenizer
from djepa_mm.weights import TOKENIZER, checkpoints, find_checkpoint

TERMS = ("squared", "absolute", "kl", "perceptual", "verdict", "features")
Grid = tuple[int, int, int]
Alike = Mapping[Grid, Sequence[int]]  # rows of a batch by the grid of their items' tokens


class TokenizerTask:
    """An autoencoder, what it learns from, and a discriminator where the recipe asks for one."""

    def __init__(self, recipe: TokenizerRecipe, *, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.optim, self.settings = recipe.optim, recipe.run
        self.ranks = current()
        self.share = Share(rank=self.ranks.rank, world=self.ranks.world, parts=recipe.compute.accumulate)
        source, raw = recipe.data.build(), recipe.tokenizer.build()
        check_media(source, raw)
        if isinstance(source, KeptCorpus):
            raise UserError(f"data.source {recipe.data.source}: a tokenizer learns from media, not from tokens")
        if hasattr(type(raw), "weights_hash"):
            raise UserError(
                f"tokenizer.kind {recipe.tokenizer.kind}: raw tokens are compressed, such as patches or mel"
            )
        loss = recipe.loss
        if (loss.adversarial or loss.perceptual) and not isinstance(raw, RawTokens):
            raise UserError(
                f"loss.perceptual, loss.verdict and loss.features look at pictures, and the tokens of the kind "
                f"{recipe.tokenizer.kind} show none: set them to 0"
            )
        check_room(
            lambda: Autoencoder(raw.token_dim, recipe.model),
            device,
            "model: the encoder and the decoder",
            "model.preset, or look at model.width, model.depth and the size of the raw tokens",
        )
        torch.manual_seed(recipe.run.seed)
        self.raw: Tokenizer = raw
        self.online = Autoencoder(raw.token_dim, recipe.model).to(device)
        averaged = deepcopy(self.online).requires_grad_(False).eval()
        networks = nn.ModuleDict({"autoencoder": self.online})
        optimizers = build_optimizers(self.online, recipe.optim)
        self.groups = {"autoencoder": Group(module=self.online, optimizers=optimizers)}
        settles = loss.denoise is not None and loss.denoise.until < 1
        self.wrapped = wrap(self.online, recipe.compute, self.ranks, device, unused=settles)
        self.discriminator: nn.Module | None = None
        if loss.adversarial:
            shown = self._pictures(torch.zeros(1, 1, raw.token_dim, device=device), {(1, 1, 1): [0]})
            judge = PatchDiscriminator(shown[0].shape[1], loss.discriminator_channels).to(device)
            networks["discriminator"] = judge
            theirs = build_optimizers(judge, recipe.optim)
            self.groups["discriminator"] = Group(module=judge, optimizers=theirs)
            self.discriminator = wrap(judge, recipe.compute, self.ranks, device, unused=False)
            optimizers = optimizers + theirs
        self.perceptual = PerceptualLoss(loss.perceptual_network, device) if loss.perceptual_network else None
        condition = NoConditionConfig(kind="none").build()
        self.corpus = open_corpus(source, raw, condition, recipe.batch, seed=recipe.run.seed, device=device)
        self.held_out: Source | None = recipe.data.build_held_out()
        self.dealt = Dealt(self.ranks, device)
        self.state = TrainState(
            networks=networks,
            averaged=averaged,
            optimizers=optimizers,
            generator=torch.Generator(device).manual_seed(recipe.run.seed),
            device=device,
            tensors={TOKENIZER: raw},
            facts={
                "tokens": Section(recipe.tokenizer, "tokenizer", free=TOKENS_FREE),
                "size": Section(recipe.model, "model"),
                "optim": Constant({"optimizer": recipe.optim.optimizer}, "optim"),
                "corpus": SameCorpus(self.corpus.identity()),
            },
        )

    def begin(self, progress: Progress) -> None:
        self.corpus.fit_tokenizer()

    def prepare(self, progress: Progress) -> None:
        if self.recipe.batch.cache:
            self.corpus.fill_cache(progress, self.ranks)
        self.examples = list(self._examples(self.recipe.run.samples)) if self.ranks.first else []

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[Portion | None], Cursor]]:
        return self.corpus.batches(cursor, self.share)

    # --- a step

    def learn(self, batch: Sequence[Portion | None], update: Update, progress: float) -> Learned | None:
        """As D-JEPA's: chance decides for the whole batch, and means are taken over all of it."""
        whole = self.dealt.whole(batch)
        if whole is None:
            return None
        chance = self._draw(whole, progress)
        judged = self.discriminator is not None and progress >= self.recipe.loss.adversarial_from
        terms = {}
        if self.discriminator is not None:
            terms["detection"] = torch.zeros((), device=self.device)
        if judged:
            terms["detection"] = self._detect(batch, whole, chance, update)
        sums = torch.zeros(len(TERMS), device=self.device)

        def losses() -> Iterator[Tensor]:
            for n, part in enumerate(batch):
                tokens, own, share = self._own(part, whole, chance)
                with gradients_stay_here(self.wrapped, n < len(batch) - 1):
                    with autocast(self.optim, self.device):
                        found: Reconstruction = self.wrapped(tokens.tokens, tokens.positions, tokens.valid, own)
                    named = self._terms(found, tokens, whole.tokens, judged)
                    values = torch.stack([named[name] for name in TERMS]) * share
                    sums.add_(values.detach())
                    weights = values.new_tensor([getattr(self.recipe.loss, name) for name in TERMS])
                    yield (values * weights).sum() * self.ranks.world  # over the processes, gradients are averaged

        norm = update("autoencoder", losses())
        self.ranks.add(sums)
        used = [name for name in TERMS if name == "squared" or getattr(self.recipe.loss, name)]
        terms |= {name: value for name, value in zip(TERMS, sums, strict=True) if name in used}
        return Learned(terms=terms | {"gradient_norm": norm}, items=whole.items, tokens=whole.tokens)

    def _terms(self, found: Reconstruction, batch: TokenBatch, among: int, judged: bool) -> dict[str, Tensor]:
        """Unweighted losses of a part, each over the number of tokens of the whole batch."""
        valid, nothing = batch.valid, torch.zeros((), device=self.device)
        error = (found.tokens - batch.tokens)[valid]
        terms = dict.fromkeys(TERMS, nothing)
        terms["squared"] = error.square().mean(-1).sum() / among
        terms["absolute"] = error.abs().mean(-1).sum() / among
        if self.recipe.model.bottleneck == "kl":
            variance = found.std.square()
            divergence = 0.5 * (found.mean.square() + variance - 1 - variance.log())
            terms["kl"] = divergence.mean(-1)[valid].sum() / among
        if self.perceptual is not None or judged:
            groups = alike(batch)
            shares = nothing.new_tensor(shares_of(groups, among))
            made, real = self._pictures(found.tokens, groups), self._pictures(batch.tokens, groups)
            if self.perceptual is not None:
                distances = [self.perceptual(*pair) for pair in zip(made, real, strict=True)]
                terms["perceptual"] = torch.stack(distances) @ shares
            if judged:
                judge = self.groups["discriminator"].module
                with torch.no_grad():
                    theirs = judge(real)
                judge.requires_grad_(False)
                ours = judge(made)
                judge.requires_grad_(True)
                found_out = [deception([one], [other], apart=True) for one, other in zip(ours, theirs, strict=True)]
                for name in ("verdict", "features"):
                    terms[name] = torch.stack([getattr(one, name) for one in found_out]) @ shares
        return terms

    def _detect(self, batch: Sequence[Portion | None], whole: Whole, chance: Disturbance, update: Update) -> Tensor:
        """One step of the discriminator -> its loss."""
        discriminator, total = self.discriminator, torch.zeros((), device=self.device)
        assert discriminator is not None

        def losses() -> Iterator[Tensor]:
            for n, part in enumerate(batch):
                tokens, own, share = self._own(part, whole, chance)
                with torch.no_grad(), autocast(self.optim, self.device):
                    found: Reconstruction = self.online(tokens.tokens, tokens.positions, tokens.valid, own)
                groups = alike(tokens)
                made, real = self._pictures(found.tokens, groups), self._pictures(tokens.tokens, groups)
                with gradients_stay_here(discriminator, n < len(batch) - 1):
                    seen = discriminator([*made, *real])
                    pairs = zip(seen[: len(made)], seen[len(made) :], strict=True)
                    shares = total.new_tensor(shares_of(groups, whole.tokens))
                    loss = share * (torch.stack([detection([one], [other]) for one, other in pairs]) @ shares)
                    total.add_(loss.detach())
                    yield loss * self.ranks.world

        update("discriminator", losses())
        self.ranks.add(total)
        return total

    def _own(self, part: Portion | None, whole: Whole, chance: Disturbance) -> tuple[TokenBatch, Disturbance, float]:
        """What of the batch a part learns from, and 1; of one that nothing could be read of, something, and 0."""
        if part is None:
            spare = self.dealt.spare
            return spare, undisturbed(spare, self.recipe.model.channels, settled=chance.settled), 0.0
        rows = whole.rows(part)
        return part.batch, chance if rows is None else chance.of(rows, part.batch.valid.shape[1]), 1.0

    def _draw(self, whole: Whole, progress: float) -> Disturbance:
        """Of the whole batch, by the run's generator."""
        count, longest = whole.valid.shape
        channels, generator = self.recipe.model.channels, self.state.generator
        options = {"generator": generator, "device": self.device}
        noise = torch.randn(count, longest, channels, **options)  # type: ignore[call-overload]
        calm = Disturbance(
            noise=noise,
            hidden=torch.zeros_like(whole.valid),
            share=torch.zeros(count, device=self.device),
            other=torch.zeros_like(noise),
        )
        denoise = self.recipe.loss.denoise
        if denoise is None:
            return calm
        if progress >= denoise.until:
            return replace(calm, settled=True)
        share, ratio = torch.rand(2, count, **options)  # type: ignore[call-overload]
        other = denoise.noise * torch.randn(count, longest, channels, **options)  # type: ignore[call-overload]
        order = torch.rand(count, longest, **options).masked_fill(~whole.valid, 2)  # type: ignore[call-overload]
        rank = order.argsort(1).argsort(1)
        ratio = (ratio * (denoise.hidden + 0.1) - 0.1).clamp_min(0) if denoise.hidden else torch.zeros_like(ratio)
        return Disturbance(noise=noise, hidden=rank < ratio[:, None] * whole.valid.sum(1, keepdim=True), share=share,
                           other=other)  # fmt: skip

    def _pictures(self, tokens: Tensor, groups: Alike) -> list[Tensor]:
        """(B, N, P) -> pictures of all items, those of one size together."""
        assert isinstance(self.raw, RawTokens)
        return [self.raw.views(tokens[rows, : math.prod(grid)], grid) for grid, rows in groups.items()]

    # --- what shows how well it has learned

    def write_samples(self, folder: Path, stem: str, progress: Progress) -> list[Path]:
        """A sheet of media, each above what came back of it; sounds as files too."""
        if not self.examples:
            return []
        folder.mkdir(exist_ok=True)
        media, files = self.raw.media, [folder / f"{stem}.png"]
        back = []
        for done, item in enumerate(self.examples):
            progress(done, len(self.examples))
            back.append(self._reconstructed(item))
        sheet([media.preview(item) for item in (*self.examples, *back)], columns=len(back)).save(files[0])
        if media.suffixes[0] != ".png":
            for n, (item, again) in enumerate(zip(self.examples, back, strict=True)):
                for name, one in ((f"{stem}-{n:02d}", again), (f"original-{n:02d}", item)):
                    files.append(folder / f"{name}{media.suffixes[0]}")
                    media.save(one, files[-1])
        return files

    @torch.no_grad()
    def _reconstructed(self, media: Tensor) -> Tensor:
        spec, batch = self.raw.spec_of(tuple(media.shape)), media[None].to(self.device)
        positions, network = spec.positions().to(self.device)[None], self.state.averaged
        assert isinstance(network, Autoencoder)
        latents, _ = network.posterior(self.raw.encode(batch), positions)
        return self.raw.decode(network.decode(latents, positions), spec)[0].float().cpu()

    def _examples(self, count: int) -> Iterator[Tensor]:
        """Media of the corpus: held-out ones where there are any, evenly spread."""
        if self.held_out is None and not isinstance(self.corpus, Corpus):
            seen = (one.media for one in self.corpus.each(lambda done, total: None))
            yield from islice((media for media in seen if media is not None), count)
            return
        source = self.corpus.source if self.held_out is None and isinstance(self.corpus, Corpus) else self.held_out
        assert source is not None
        indices = range(0, len(source), max(1, len(source) // count))[:count]
        for index in indices:
            try:
                with drawing(item_seed(self.recipe.run.seed, BEFORE, index)):
                    media = source.read(index).media
                self.raw.spec_of(tuple(media.shape))
            except (BrokenItem, UserError):
                continue
            yield media

    def report(self) -> Report:
        left_out = getattr(self.corpus.source, "left_out", {})
        broken = {name: why for found in self.ranks.gather(self.corpus.broken) for name, why in found.items()}
        return Report(items=self.corpus.items, broken=broken, left_out=left_out)


def alike(batch: TokenBatch) -> Alike:
    """Its items by their grids, which their positions tell."""
    last = batch.positions.masked_fill(~batch.valid[..., None], 0).amax(1).long() + 1
    groups: dict[Grid, list[int]] = defaultdict(list)
    for n, (t, h, w) in enumerate(last.tolist()):
        groups[t, h, w].append(n)
    return groups


def shares_of(groups: Alike, among: int) -> list[float]:
    """Of each group, the share of so many tokens."""
    return [len(rows) * math.prod(grid) / among for grid, rows in groups.items()]


def undisturbed(batch: TokenBatch, channels: int, *, settled: bool) -> Disturbance:
    count, longest = batch.valid.shape
    nothing, hidden = batch.tokens.new_zeros(count, longest, channels), torch.zeros_like(batch.valid)
    share = batch.tokens.new_zeros(count)
    return Disturbance(noise=nothing, hidden=hidden, share=share, other=nothing, settled=settled)


def train_tokenizer(
    recipe: TokenizerRecipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
) -> Outcome:
    """Train a tokenizer in the run folder `out`, under torchrun by all processes together. Raises UserError where it
    holds a run already, or none to resume."""
    with joined() as ranks:
        resume = resume or (restarts() > 0 and bool(checkpoints(out / "checkpoints")))
        device = torch.device(device)

        def prepare() -> Trainer:
            check_folder(out, resume=resume)
            if resume:
                _check_resumable(find_checkpoint(out), recipe)
            task = TokenizerTask(recipe, device=device)
            return Trainer(task, out, resume=resume, console=console, callbacks=callbacks, stop=stop)

        try:
            trainer = ranks.agree(prepare)
            assert trainer is not None
            return trainer.run()
        except torch.OutOfMemoryError:
            raise UserError(
                f"{device} is out of memory: lower batch.size ({recipe.batch.size}) or raise compute.accumulate "
                f"({recipe.compute.accumulate})"
            ) from None


def _check_resumable(checkpoint: Path, recipe: TokenizerRecipe) -> None:
    """Raises UserError where there would be another discriminator than in the checkpoint, or where only one has one."""
    there, here = load_tokenizer_recipe(checkpoint / "recipe.yaml").loss, recipe.loss
    keys = ["verdict", "features"] if there.adversarial != here.adversarial else []
    if there.adversarial and here.adversarial:
        keys = ["discriminator_channels"]
    for key in keys:
        if getattr(there, key) != getattr(here, key):
            raise UserError(
                f"--resume {checkpoint}: its loss.{key} is {getattr(there, key)}, here {getattr(here, key)}; "
                "make them agree"
            )
