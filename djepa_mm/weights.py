"""The reader of weights: those of our own checkpoints, and those of pretrained VAEs.

What a checkpoint's folder holds is told in `djepa_mm.runs.checkpoint`, which writes it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from djepa_mm.errors import UserError
from djepa_mm.types import Config, WayTo

FORMAT = 3  # of the checkpoints that are written
TOKENIZER = "tokenizer"  # prefix of the tokenizer's statistics among the averaged weights
READABLE = (2, FORMAT)
ANSWER_S = 5.0  # that the Hugging Face hub has to answer


Count = Annotated[int, Field(ge=0, lt=2**63)]


Numbers = dict[str, NonNegativeFloat]


class StoredFeedback(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    offered: Numbers = {}
    sampled: Numbers = {}
    recent: Numbers = {}
    factors: Numbers = {}


class StoredCursor(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    epoch: Count = 0
    batch: Count = 0
    readers: list[list[Count]] = []
    feedback: list[StoredFeedback] = []
    before: Count = 0


class State(BaseModel):
    """What every checkpoint says in state.json, where it says it; what else there is, its readers know."""

    model_config = ConfigDict(strict=True, extra="allow")

    step: Count = 0
    seconds: NonNegativeFloat = 0.0
    cursor: StoredCursor = StoredCursor()
    folder: WayTo = "."
    sha256: dict[str, str] = {}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first; no folders of the user's own, such as step-00001000-good."""
    found = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def find_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run folder, or the checkpoint that `path` itself is."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; a run is made by: djepa-mm train RECIPE")
    if (path / "state.json").is_file():
        found = [path]
    else:
        found = checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path}: this folder has no checkpoint yet; train first, into it: --out {path}")
    if not (recipe := found[-1] / "recipe.yaml").is_file():
        raise _damaged(recipe, FileNotFoundError("no such file"))
    return found[-1]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json. Raises UserError where it is damaged or of a format that is not read here."""
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(state, dict):
        raise _damaged(path, ValueError(f"expected a mapping, found {type(state).__name__}"))
    if (found := state.get("format")) not in READABLE:
        advice = "upgrade djepa-mm" if isinstance(found, int) and found > FORMAT else "train again"
        known = " and ".join(map(str, READABLE))
        raise UserError(f"{path}: format {found!r}, and this version of djepa-mm reads {known}: {advice}")
    if found != FORMAT:
        state = _state_of_format_2(state)
    try:
        State.model_validate(state)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _damaged(path, ValueError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")) from None
    return state


def trained_in(checkpoint: Path) -> Path | None:
    """The folder that a run was trained in, where its corpus of a relative name lies; older checkpoints say none."""
    way = read_state(checkpoint).get("folder")
    return None if way is None else (checkpoint.resolve() / way).resolve()


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Tensors of one of the checkpoint's files, whole where it is sharded. Raises UserError where it is damaged."""
    path = checkpoint / f"{name}.safetensors"
    try:
        if (shards := checkpoint / name).is_dir():
            path = shards
        _check_hashes(checkpoint, path)
        tensors = _joined(path) if path is shards else load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return {_name_of_today(name, key): tensor for key, tensor in tensors.items()}


def _joined(folder: Path) -> dict[str, Tensor]:
    """Tensors of which each file in a folder holds a part."""
    from torch.distributed import checkpoint as shards  # a second to import

    reader = shards.HuggingFaceStorageReader(str(folder))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in known.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads alone
        shards.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _check_hashes(checkpoint: Path, path: Path) -> None:
    """Raises ValueError where a file, or one of a folder, is not what was written. Older checkpoints have no hashes."""
    state = read_state(checkpoint) if (checkpoint / "state.json").is_file() else {}
    for name, expected in state.get("sha256", {}).items():
        file = checkpoint / name
        if (file == path or path in file.parents) and sha256(file) != expected:
            raise ValueError(f"{name} is not what was written: its hash differs")


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path, *, assign: bool = False) -> None:
    """Load a state dict; `assign` puts its tensors in the place of the module's own.

    Raises UserError, naming `origin`, where names or shapes do not fit."""
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{origin}: the weights do not fit the recipe: {detail}") from None


def _state_of_format_2(state: dict[str, Any]) -> dict[str, Any]:
    """A state of format 2 in today's words. Each kind of condition takes what is its own."""
    renamed = {key: value for key, value in state.items() if key not in ("classes", "words", "pace", "place")}
    renamed["cursor"] = state.get("place") or {"epoch": 0, "batch": 0}
    renamed["condition"] = {key: state.get(key) for key in ("classes", "words", "pace")}
    return renamed


# How a tensor's name began in format 2, and how it begins today, by file
RENAMED = {
    "averaged": {"conditioner.": "embedder."},
    "online": {"conditioner.": "embedder."},
    "training": {
        "optimizer.conditioner.": "optimizer.embedder.",
        "vocoder.": "optimizer.vocoder.",
        "discriminators.": "optimizer.discriminators.",
    },
}


def _name_of_today(file: str, name: str) -> str:
    old = next((old for old in RENAMED[file] if name.startswith(old)), None)
    return name if old is None else RENAMED[file][old] + name.removeprefix(old)


def _damaged(path: Path, error: Exception) -> UserError:
    older = [c.name for c in checkpoints(path.parent.parent) if c.name < path.parent.name]
    advice = f"delete {path.parent.name} to go on from {older[-1]}" if older else "there is no older one: train again"
    return UserError(f"{path}: damaged checkpoint ({' '.join(str(error).split())}); {advice}")


# --- pretrained VAEs --------------------------------------------------------------------------------------------------


class VAEConfig(Config):
    """What recipes say of a VAE, whatever it compresses."""

    subfolder: str | None = None
    """Where the VAE lies inside the model, often "vae"."""
    channels: PositiveInt | None = None
    """Channels of a latent; with `stride`, nothing is read before the first item."""
    scale: float | None = Field(default=None, gt=0)
    """Tokens are (latent − shift)·scale; by default as the VAE's own configuration says."""
    shift: float | None = None
    sample: bool = False
    """Train on latents drawn from the VAE's posterior, anew at each reading, instead of on its mode."""
    tile: bool = False
    """Encode and decode in overlapping tiles, to save memory."""
    allow_pickle: bool = False
    """Also load weights from pickle files; these can run code, so only from people you trust."""


class VAETokens(ABC):
    """What tokenizers on a pretrained VAE share: of its latents' distribution, tokens are the mean, or drawn from it
    in training. Nothing is learned of a corpus, for scale and shift belong to the VAE."""

    config: VAEConfig
    vae: Any

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the VAE's weights and of its own configuration, which may hold the scale of its latents."""
        config = {key: value for key, value in dict(self.vae.config).items() if not key.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.vae.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @abstractmethod
    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *shape) -> mean and deviation of the tokens, (B, N, C) each."""

    @property
    def draws(self) -> bool:
        return self.config.sample

    def encode(self, media: Tensor) -> Tensor:
        return self.posterior(media)[0]

    def fit(self, media: Iterable[Tensor]) -> None:
        """Nothing to learn."""
        return

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was learned."""
        return


def hub_reach(name: str) -> dict[str, Any]:
    """Where transformers and diffusers may look for a folder or a name on the hub, as keywords of theirs: in the hub's
    cache alone if the hub does not answer, as each file would be asked for for half a minute otherwise."""
    if Path(name).is_dir():
        return {}
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception:  # of the library for HTTP that the hub's has chosen
        return {"local_files_only": True}
    return {}


class PretrainedVAE:
    """A VAE in diffusers' format, from a local folder or from the hub. Raises UserError, one line."""

    def __init__(self, model: str, subfolder: str | None, *, classes: tuple[str, ...], allow_pickle: bool) -> None:
        """classes: of diffusers, those that may be named in its config.json."""
        self.model, self.subfolder, self.classes, self.allow_pickle = model, subfolder, classes, allow_pickle

    @cached_property
    def reach(self) -> dict[str, Any]:
        return hub_reach(self.model)

    @cached_property
    def bare(self) -> Any:  # diffusers hides its methods from type checkers
        """The VAE without its weights: its configuration is read, with diffusers' defaults filled in, and no more."""
        import diffusers

        with self._loading(), torch.device("meta"):
            resolved = diffusers.AutoencoderKL.load_config(self.model, subfolder=self.subfolder, **self.reach)
            if (name := resolved.get("_class_name")) not in self.classes:
                raise ValueError(f"its config.json describes {name}")
            return getattr(diffusers, name).from_config(resolved)

    @property
    def block_stride(self) -> int:
        """Pixels a side of a latent, where every block but the last halves the picture."""
        return 2 ** (len(self.bare.config.block_out_channels) - 1)

    def load(self, *, found: tuple[int, Any], said: tuple[int | None, Any], tile: bool) -> Any:
        """The VAE with its weights, to be used and not to be trained.

        found, said: channels and stride of its latents, as its configuration and as the recipe has them; None where
        the recipe has none."""
        expected = said[0] or found[0], said[1] or found[1]
        if found != expected:
            raise UserError(
                f"tokenizer: the VAE {self.model!r} has {found[0]} channels and stride {found[1]}, but "
                f"tokenizer.channels and tokenizer.stride say {expected[0]} and {expected[1]}"
            )
        with self._loading():
            vae = type(self.bare).from_pretrained(
                self.model,
                subfolder=self.subfolder,
                use_safetensors=None if self.allow_pickle else True,
                low_cpu_mem_usage=False,  # else it asks for accelerate
                **self.reach,
            )
        if tile:
            vae.enable_tiling()
        return vae.eval().requires_grad_(False)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Turn diffusers' many ways to fail at loading into one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            where = self.model if self.subfolder is None else f"{self.model}, subfolder {self.subfolder}"
            reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            known = " or ".join(filter(None, (", ".join(self.classes[:-1]), self.classes[-1])))
            raise UserError(
                f"tokenizer.model: cannot load a VAE from {where!r} ({reason}); give a folder or a hub repository with "
                f"config.json and safetensors weights of diffusers' {known}, or set tokenizer.allow_pickle for .bin"
            ) from error
