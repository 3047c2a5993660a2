"""Generalised next-token prediction: the masked autoregressive sampler (D-JEPA, algorithm 1).

B batch, N tokens, C token channels, D model width, T steps, M tokens revealed in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from djepa_mm.core.djepa import DJEPA
from djepa_mm.core.masking import Order, Schedule, reveal_keys, reveal_schedule
from djepa_mm.core.types import Condition

GuidanceSchedule = Literal["constant", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How to sample. The head's own steps are the head's matter.

    ar_steps: T. guidance: s, 1 is none. guidance_schedule: `constant`, or `linear`: s_n = 1 + (s − 1) · (share known
    after step n). temperature: scales the head's noise. order: in which the places are revealed. schedule: how many
    of them in each step. leave_one: every step but the last leaves one place, and the share known of the linear
    guidance never counts it, so that it ends at (N − 1)/N, as in the code of MAR and D-JEPA.
    horizon: how many places the predictor fills in at once, as in training; None is all of them.
    sweeps: when all is drawn, hide some of it and draw it anew, so many times: of places that were drawn early, before
    there was much to fit to, nothing else is ever mended. The share that is hidden falls evenly from `sweep_share` to a
    single place, and each sweep has its share of the T steps. Gibbs sampling by blocks, from coarse to fine; as the
    correctors of Lezama et al. 2022 and the remasking of Wang et al. 2025 (ReMDM) are for discrete tokens.
    """

    ar_steps: int = 64
    guidance: float = 1.0
    guidance_schedule: GuidanceSchedule = "linear"
    temperature: float = 1.0
    order: Order = "random"
    schedule: Schedule = "cosine"
    leave_one: bool = False
    horizon: int | None = None
    sweeps: int = 0
    sweep_share: float = 0.75

    @property
    def passes(self) -> list[tuple[float, int]]:
        """The share of the free places that each pass draws, and in how many steps: first all, then the sweeps. Of
        several, the last one's share is 0, which is a single place."""
        shares = [self.sweep_share * (1 - n / max(1, self.sweeps - 1)) for n in range(self.sweeps)]
        return [(1.0, self.ar_steps), *((share, _part(share, self.ar_steps)) for share in shares)]

    @property
    def total_steps(self) -> int:
        return sum(steps for _, steps in self.passes)

    @torch.no_grad()
    def __call__(
        self,
        model: DJEPA,
        *,
        positions: Tensor,
        valid: Tensor,
        condition: Condition,
        generators: Sequence[torch.Generator],
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        places: Tensor | None = None,
        negative: tuple[Condition, Tensor] | None = None,
        progress: Callable[[int, int], Any] | None = None,
    ) -> Tensor:
        """Sample every valid token that is not known -> (B, N, C) fp32; padding is 0.

        positions (B, N, 3), valid (B, N) bool. generators: one a sample, on the CPU, so that a sample's result does
        not depend on the batch it is in. tokens (B, N, C) with known (B, N) bool: places that stay as they are.
        places (B, N, 3): by which tokens are revealed, where the model's `place` has made their positions of them.
        negative: conditions that guidance leads away from, and (B,) bool where it is the null condition instead; None
        is the null condition for all.
        """
        device = positions.device
        if known is None or tokens is None:
            known = torch.zeros_like(valid)
            tokens = torch.zeros(*valid.shape, model.token_dim, device=device)
        tokens, known = tokens.float() * known[..., None], known & valid
        free = (valid & ~known).cpu()
        away, null = negative or (condition, True)
        moves, total = self._moves(free, (positions if places is None else places).cpu(), generators), self.total_steps

        for step, (hidden, revealed, ahead) in enumerate(moves):
            if hidden:
                known[_index(hidden, device)] = False
            counts = [len(some) for some in revealed]
            if any(counts):
                rows, columns = _index(revealed, device)
                in_sequence = valid
                if self.horizon is not None:
                    in_sequence = known.clone()
                    in_sequence[_index(ahead, device)] = True
                z = model.features(tokens, positions, known, in_sequence, condition)[rows, columns]
                z_null, guidance = None, self._guidance(known, valid, torch.tensor(counts, device=device))[rows, None]
                if self.guidance != 1:
                    z_null = model.features(tokens, positions, known, in_sequence, away, null=null)[rows, columns]
                new = model.head.sample(
                    z,
                    noise=partial(self._noise, generators, counts, model.token_dim, device),
                    z_null=z_null,
                    guidance=guidance,
                    temperature=self.temperature,
                )
                tokens[rows, columns] = new.float()
                known[rows, columns] = True
            if progress is not None:
                progress(step + 1, total)
        return tokens

    def _moves(
        self, free: Tensor, positions: Tensor, generators: Sequence[torch.Generator]
    ) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """free (B, N) bool, positions (B, N, 3) -> of each sample, step by step: the places that are hidden first,
        those that are revealed, and those within the horizon. A pass hides what its order reveals last. Chance is
        asked when it begins."""
        for share, steps in self.passes:
            whole = self._orders(free, positions, generators)
            orders = [order[len(order) - _part(share, len(order)) :] for order in whole]
            schedules = [[0, *reveal_schedule(len(o), steps, self.schedule, self.leave_one)] for o in orders]
            for step in range(steps):
                spans = [(s[step], s[step + 1]) for s in schedules]
                yield (
                    orders if step == 0 else [],
                    [o[begin:end] for o, (begin, end) in zip(orders, spans, strict=True)],
                    [
                        o[begin : max(end, begin + (self.horizon or 0))]
                        for o, (begin, end) in zip(orders, spans, strict=True)
                    ],
                )

    def _orders(self, free: Tensor, positions: Tensor, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """free (B, N) bool, positions (B, N, 3) -> each sample's free places in the order of revealing."""
        orders = []
        for places, coordinates, generator in zip(free, positions, generators, strict=True):
            index = places.nonzero()[:, 0]
            orders.append(index[reveal_keys(coordinates[None, index], self.order, generator)[0].argsort(stable=True)])
        return orders

    def _noise(
        self, generators: Sequence[torch.Generator], counts: Sequence[int], channels: int, device: torch.device
    ) -> Tensor:
        """Unit normal noise (M, C), each sample's rows from its own generator."""
        pairs = zip(generators, counts, strict=True)
        return torch.cat([torch.randn(n, channels, generator=g) for g, n in pairs]).to(device)

    def _guidance(self, known: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
        """(B,) the guidance of this step."""
        if self.guidance_schedule == "constant":
            return torch.full(counts.shape, self.guidance, device=counts.device)
        num_tokens = valid.sum(1)
        after = (known.sum(1) + counts).minimum(num_tokens - int(self.leave_one))
        return 1 + (self.guidance - 1) * after / num_tokens


def _part(share: float, whole: int) -> int:
    """That share of a number, rounded up, at least one where there is one."""
    return min(whole, max(1, math.ceil(share * whole - 1e-9)))


def _index(places: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of each sample -> rows and columns (M,) of all of them together, which (B, N) takes as its index."""
    counts = torch.tensor([len(some) for some in places])
    return torch.repeat_interleave(torch.arange(len(places)), counts).to(device), torch.cat(list(places)).to(device)
