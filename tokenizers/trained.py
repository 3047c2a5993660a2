"""Learned tokens: raw ones of any kind, compressed by an autoencoder that `djepa-mm tokenizer train` has trained.

B batch, N tokens, P numbers of a raw token, K channels of a token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from djepa_mm.kinds import sections
from djepa_mm.moments import UnitVariance
from djepa_mm.tokenizers.autoencoder import Autoencoder, AutoencoderConfig
from djepa_mm.types import USUAL, Config, Extent, MediaSpec, Pinned, Tokenizer, UserError
from djepa_mm.weights import TOKENIZER, find_checkpoint, load_weights, read_state, read_tensors

TRAIN = "djepa-mm tokenizer train"
FIT_AT_ONCE = 16  # items that statistics are taken of together
AT_ONCE = 64  # tokens in time that go through a network together
CHANGEABLE = ("size", "vary", "frames", "frame_rate", "max_duration_s", "vocoder")  # keys of the raw tokens
RAW_KEYS = re.compile(rf"\btokenizer\.({'|'.join(CHANGEABLE)})\b")


class TrainedConfig(Config):
    """Tokens of an autoencoder that `djepa-mm tokenizer train` has trained: of pictures, of clips or of mels."""

    kind: Literal["trained"]
    path: str = Field(examples=["runs/tokenizer"])
    """Run folder of the tokenizer's training, or one of its checkpoints."""
    sha256: str | None = None
    """Of its weights: others are refused. A run that is trained on these tokens notes it by itself."""
    media: dict[str, Any] = Field(default_factory=dict)
    """What of its raw tokens is other here: size, vary, frames, frame_rate, max_duration_s or vocoder."""
    sample: bool = False
    """Train on tokens drawn from the posterior, anew at each reading, instead of on its mean."""

    def build(self) -> Trained:
        return Trained(self)

    def pinned(self) -> Self:
        """With the hash of the weights that are there."""
        return self.model_copy(update={"sha256": self.build().weights_hash})


class Trained:
    """The weights are loaded at the first encode or decode, on the media's device."""

    def __init__(self, config: TrainedConfig) -> None:
        self.config = config
        self.checkpoint = _checkpoint(Path(config.path).expanduser())
        self._state = read_state(self.checkpoint)
        if unknown := sorted(set(config.media) - set(CHANGEABLE)):
            raise UserError(f"tokenizer.media.{unknown[0]}: only {', '.join(CHANGEABLE)} may be other than in training")
        if not {"tokens", "size"} <= self._state.keys():
            raise UserError(f"tokenizer.path: {self.checkpoint} holds no tokenizer; one is trained by: {TRAIN} RECIPE")
        said = f"tokenizer.path: {self.checkpoint / 'state.json'}"
        self.model: AutoencoderConfig = _section(AutoencoderConfig, self._state["size"], said)
        tokens = _section(dict[str, Any], self._state["tokens"], said)
        kinds = sections("kind", "djepa_mm.tokenizers")
        raw = _section(kinds, tokens | config.media, "tokenizer.media" if config.media else said)
        if isinstance(raw, Pinned):
            raise UserError(f"{said}: tokens of the kind {tokens['kind']} are not raw")
        with _by_its_own_keys():
            self.raw: Tokenizer = raw.build()
        if config.sample and self.model.bottleneck != "kl":
            raise UserError(f"tokenizer.sample: tokens of the bottleneck {self.model.bottleneck} are not drawn")
        if config.sha256 not in (None, self.weights_hash):
            raise UserError(
                f"tokenizer.sha256: the weights in {self.checkpoint} are {self.weights_hash[:12]}…, not "
                f"{config.sha256[:12]}…; name the run or checkpoint that was meant in tokenizer.path"
            )
        self.token_dim = self.model.channels
        self.media, self.span = self.raw.media, self.raw.span
        self.unit = UnitVariance(self.token_dim)

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the averaged weights' file."""
        found = self._state.get("sha256", {}).get("averaged.safetensors")
        if found is None:
            raise UserError(f"{self.checkpoint}: says no hash of its weights; train it again: {TRAIN}")
        return str(found)

    @cached_property
    def network(self) -> Autoencoder:
        tensors, prefix = read_tensors(self.checkpoint, "averaged"), f"{TOKENIZER}."
        learned = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        path = self.checkpoint / "averaged.safetensors"
        with torch.device("meta"):  # so that no weights are drawn, which would move the random state of a run
            network = Autoencoder(self.raw.token_dim, self.model)
        load_weights(network, tensors, path, assign=True)
        try:
            self.raw.load_state(learned)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: holds no statistics of raw tokens ({error!r}); train it again: {TRAIN}") from None
        return network.requires_grad_(False).eval()

    @property
    def fixed(self) -> MediaSpec | None:
        return self.raw.fixed

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        with _by_its_own_keys():
            return self.raw.spec_of(shape)

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        with _by_its_own_keys():
            return self.raw.spec_for(extent)

    @property
    def draws(self) -> bool:
        return self.config.sample

    @torch.no_grad()
    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._latents(media)
        return self.unit.apply(mean), std / self.unit.std.to(std)

    def encode(self, media: Tensor) -> Tensor:
        return self.posterior(media)[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        network = self._on(tokens.device)
        return self.raw.decode(self._through(network.decode, self.unit.undo(tokens.float()), spec), spec)

    def fit(self, media: Iterable[Tensor]) -> None:
        self.unit.fit(self._latents(batch)[0].flatten(0, 1) for batch in _batches(media))

    def state(self) -> dict[str, Tensor]:
        return self.unit.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.unit.load_state(state)

    def _on(self, device: torch.device) -> Autoencoder:
        if next(self.network.parameters()).device != device:  # else each call would go through all of its weights
            self.network.to(device)
        return self.network

    @torch.no_grad()
    def _latents(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *shape) -> mean and deviation of the latents, (B, N, K) each."""
        network = self._on(media.device)

        def posterior(tokens: Tensor, positions: Tensor) -> Tensor:
            return torch.cat(network.posterior(tokens, positions), dim=-1)

        spec = self.raw.spec_of(tuple(media.shape[1:]))
        mean, std = self._through(posterior, self.raw.encode(media), spec).chunk(2, dim=-1)
        return mean, std

    def _through(self, run: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, spec: MediaSpec) -> Tensor:
        """(B, N, ·) -> (B, N, ·) by a network. Where its blocks see only so far in time, long media go in parts,
        each with as much before and after it as they see, which gives the same in bounded memory."""
        positions = spec.positions().to(tokens.device).expand(len(tokens), -1, -1)
        (times, *places), window = spec.grid, self.model.window
        if window is None or times <= AT_ONCE:
            return run(tokens, positions)
        reach, each = self.model.size("depth") * (window - 1), math.prod(places)
        parts = []
        for start in range(0, times, AT_ONCE):
            first, stop = max(0, start - reach), min(times, start + AT_ONCE)
            last = stop if self.model.causal else min(times, stop + reach)
            some = slice(first * each, last * each)
            parts.append(run(tokens[:, some], positions[:, some])[:, (start - first) * each : (stop - first) * each])
        return torch.cat(parts, dim=1)


@contextmanager
def _by_its_own_keys() -> Iterator[None]:
    """Mistakes of raw tokens name their keys, which here are those of `media`."""
    try:
        yield
    except UserError as error:
        raise UserError(RAW_KEYS.sub(r"tokenizer.media.\1", str(error))) from None


def _batches(media: Iterable[Tensor]) -> Iterator[Tensor]:
    """Of neighbours of one shape."""
    for _, alike in groupby(media, key=lambda item: item.shape):
        while batch := list(islice(alike, FIT_AT_ONCE)):
            yield torch.stack(batch)


def _checkpoint(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"tokenizer.path: no run at {path.absolute()}; a tokenizer is trained by: {TRAIN} RECIPE")
    return find_checkpoint(path)


def _section(schema: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(schema).validate_json(json.dumps(value))
    except ValidationError as error:
        wrong, kind = error.errors()[0], value.get("kind") if isinstance(value, dict) else None
        key = "".join(f".{part}" for part in wrong["loc"] if part != kind)
        raise UserError(f"{where}{key}: {wrong['msg']}") from None
