"""All that a run is and that a checkpoint brings back, spelled once: saving, loading and comparing derive from it."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Set
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from djepa_mm.data.corpus import Cursor
from djepa_mm.errors import Notice, UserError
from djepa_mm.ranks import Ranks, is_split
from djepa_mm.recipe.load import recipe_data
from djepa_mm.runs.checkpoint import save_checkpoint, snapshot
from djepa_mm.types import Config
from djepa_mm.weights import load_weights, read_state, read_tensors


class Part(Protocol):
    """Something that a checkpoint holds as named tensors."""

    def state(self) -> Mapping[str, Tensor]: ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Facts(Protocol):
    """Something that a checkpoint holds as plain data, ready for JSON."""

    def state(self) -> Mapping[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass(kw_only=True)
class TrainState:
    """networks: what is trained. averaged: the EMA of what is sampled from. optimizers: over the networks' parameters.
    tensors: what else was learned as tensors, such as the tokenizer's statistics, by name. facts: as plain data.
    """

    networks: nn.Module
    averaged: nn.Module
    optimizers: list[torch.optim.Optimizer]
    generator: torch.Generator
    device: torch.device
    tensors: Mapping[str, Part] = field(default_factory=dict)
    facts: Mapping[str, Facts] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    cursor: Cursor = field(default_factory=Cursor)

    def parts(self, checkpoint: Path = Path()) -> dict[str, dict[str, Part]]:
        """By file of the checkpoint and prefix of the names in it. checkpoint: what an error names."""
        learned = {f"{name}.": part for name, part in self.tensors.items()}
        return {
            "averaged": {"": Weights(self.averaged, checkpoint / "averaged.safetensors"), **learned},
            "online": {"": Weights(self.networks, checkpoint / "online.safetensors")},
            "training": {
                "optimizer.": Moments(self.optimizers, self.networks, self.device),
                "random.": RandomStates(self.generator, self.device),
            },
        }

    def saving(self, folder: Path, recipe: str, keep: int, apart: Ranks | None = None) -> Callable[[], Path]:
        """What writes a checkpoint in `folder` -> its own folder; every process has to call it. apart: by these it may
        be called in another thread, where it writes copies of the state as it is now."""
        tensors = {
            file: {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state().items()}
            for file, parts in self.parts().items()
        }
        counts = {"step": self.step, "seconds": self.seconds, "cursor": self.cursor.state()}
        state = counts | {name: facts.state() for name, facts in self.facts.items()}
        if apart is not None:
            state, tensors = deepcopy(state), snapshot(tensors, apart)
        return partial(save_checkpoint, folder, recipe, state, tensors, keep, apart)

    def load(self, checkpoint: Path) -> None:
        """The way back. Raises UserError where the checkpoint is damaged or of another model."""
        state = read_state(checkpoint)
        for name, facts in self.facts.items():
            if name == "corpus" and name not in state:  # of older ones
                continue
            try:
                facts.load_state(state[name])
            except UserError as error:
                raise UserError(f"{checkpoint / 'state.json'}: {error}") from None
            except (KeyError, TypeError, AttributeError) as error:
                where = checkpoint / "state.json"
                raise UserError(f"{where}: not of this kind of run (its {name}: {error!r})") from None
        for file, parts in self.parts(checkpoint).items():
            found = read_tensors(checkpoint, file)
            for prefix in sorted(parts, key=len, reverse=True):  # the weights, which have none, take what is left
                own = {name.removeprefix(prefix): found.pop(name) for name in list(found) if name.startswith(prefix)}
                try:
                    parts[prefix].load_state(own)
                except UserError:
                    raise
                except (KeyError, TypeError, ValueError, RuntimeError) as error:
                    where = checkpoint / f"{file}.safetensors"
                    raise UserError(f"{where}: not of this kind of run ({error!r})") from None
        try:
            self.step, self.seconds, self.cursor = state["step"], state["seconds"], Cursor(**state["cursor"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{checkpoint / 'state.json'}: damaged ({error!r})") from None


@dataclass
class Weights:
    """Parameters and buffers of a network. origin: the file, for an error."""

    module: nn.Module
    origin: Path

    def state(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        load_module(self.module, state, str(self.origin))


@dataclass
class Moments:
    """What optimisers keep of each parameter, by the parameter's name."""

    optimizers: list[torch.optim.Optimizer]
    networks: nn.Module
    device: torch.device

    def state(self) -> Mapping[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self.networks.named_parameters()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in self.networks.named_parameters()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                prefix = f"{names[parameter]}."
                moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                if moments:  # none of a network that has not been trained yet
                    optimizer.state[parameter] = {
                        key: laid_out(value.to(self.device), parameter) for key, value in moments.items()
                    }


def laid_out(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that is the same in every process, split over them as `like` is, if it is and has that shape."""
    if not is_split(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor  # a second to import

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Whole weights into a network that may be sharded. Raises UserError, naming `origin`, where they do not fit."""
    own = module.state_dict()
    split = {
        name: laid_out(tensor.to(own[name].device), own[name]) if name in own else tensor
        for name, tensor in tensors.items()
    }
    load_weights(module, split, origin)


@dataclass
class RandomStates:
    """Of the run's own generator, and of torch."""

    generator: torch.Generator
    device: torch.device

    def state(self) -> Mapping[str, Tensor]:
        states = {"generator": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def load_state(self, state: dict[str, Tensor]) -> None:
        then = state["generator"]
        if then.numel() == self.generator.get_state().numel():
            self.generator.set_state(then)
        else:  # a CPU's state does not fit a GPU's generator, nor the other way round
            warnings.warn(
                "the checkpoint is of another kind of device: random numbers go on anew", Notice, stacklevel=2
            )
            self.generator.manual_seed(zlib.crc32(then.numpy().tobytes()))
        if "torch" in state:
            torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


@dataclass
class Constant:
    """What cannot change within a run."""

    value: Mapping[str, Any]
    name: str

    def state(self) -> Mapping[str, Any]:
        return self.value

    def load_state(self, state: Mapping[str, Any]) -> None:
        for key, here in self.value.items():
            if state[key] != here:
                raise UserError(f"its {self.name}.{key} is {state[key]!r}, here {here!r}; make them agree")


@dataclass
class Section:
    """A section of a recipe, of which only the keys that are free may change within a run. What a checkpoint does not
    say yet, because the key is younger than it, was then as it is by default."""

    config: Config
    name: str
    free: Set[str] = frozenset()

    def state(self) -> Mapping[str, Any]:
        return recipe_data(self.config)

    def load_state(self, state: Mapping[str, Any]) -> None:
        here = recipe_data(self.config)
        then = {key: state[key] if key in state else self._default(key) for key in here.keys() - self.free}
        Constant({key: here[key] for key in here if key in then}, self.name).load_state(then)

    def _default(self, key: str) -> Any:
        """Raises KeyError where there is none."""
        field = type(self.config).model_fields[key]
        if field.is_required():
            raise KeyError(key)
        default = field.get_default(call_default_factory=True)
        return recipe_data(self.config.model_copy(update={key: default}))[key]


@dataclass
class SameCorpus:
    """What tells a corpus from another. A run may go on with another one, but not without a word."""

    identity: Mapping[str, Any]

    def state(self) -> Mapping[str, Any]:
        return self.identity

    def load_state(self, state: Mapping[str, Any]) -> None:
        differs = [
            f"{key} {state.get(key)} then, {here} now" for key, here in self.identity.items() if state.get(key) != here
        ]
        if differs:
            what = ", ".join(differs)
            warnings.warn(f"the corpus is not what it was ({what}): the run goes on with other batches", Notice, 2)
