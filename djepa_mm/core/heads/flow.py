"""Flow-matching head: x_t = t·x + (1 − t)·ε, t = 0 noise, t = 1 data; the MLP gives the velocity x − ε, or x itself.

M tokens, C token channels, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from djepa_mm.core.heads.guidance import guided
from djepa_mm.core.heads.mlp import DenoisingMLP
from djepa_mm.core.types import Noising

FlowSolver = Literal["euler", "heun"]
TimeSampling = Literal["uniform", "logit-normal"]
Predicts = Literal["velocity", "data"]
LEAST_LEFT = 0.05  # of 1 − t, which a prediction of the data is divided by


class FlowHead(nn.Module):
    """Flow matching for one token (D-JEPA §3; Lipman et al. 2023).

    solver_steps: to sample. time_shift s: t ← t / (t + s − s·t) at sampling (D-JEPA-T2I); 1 is none.
    repeats: how often each token is used in a training step, with fresh noise and time. time_mean: of the logit of the
    times in training; below 0 is nearer to noise, where the feature matters most: tokens of many channels show through
    half the noise by themselves (Esser et al. 2024, §5.3). predicts: what the MLP gives;
    `data` is for tokens of many channels that lie on something thin, such as raw pixels, where noise, which fills all
    of the space, is hard to give back (Li & He 2025). The loss is the velocity's either way. time_scale: what t = 1 is
    to the MLP's embedding of time; D-JEPA's code gives it t itself, 1.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        feature_width: int,
        width: int,
        blocks: int,
        repeats: int = 4,
        time_sampling: TimeSampling = "logit-normal",
        time_mean: float = 0.0,
        solver_steps: int = 25,
        solver: FlowSolver = "euler",
        time_shift: float = 1.0,
        predicts: Predicts = "velocity",
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        self.mlp = DenoisingMLP(
            in_channels=token_dim, out_channels=token_dim, condition_width=feature_width, width=width, blocks=blocks
        )
        self.token_dim = token_dim
        self.repeats, self.time_sampling, self.time_mean = repeats, time_sampling, time_mean
        self.solver_steps, self.solver, self.time_shift = solver_steps, solver, time_shift
        self.predicts, self.time_scale = predicts, time_scale

    def velocity(self, x_t: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """x_t (M, C), time (M,) or (1,) in [0, time_scale], z (M, D) -> (M, C) fp32."""
        out = self.mlp(x_t, time, z)
        if self.predicts == "velocity":
            return out
        return (out - x_t) / (1 - time[:, None] / self.time_scale).clamp_min(LEAST_LEFT)

    def draw(self, count: int, generator: torch.Generator) -> Noising:
        """For so many tokens; times in [0, 1]."""
        shape, where = (self.repeats, count), generator.device
        noise = torch.randn(*shape, self.token_dim, generator=generator, device=where)
        if self.time_sampling == "uniform":
            return Noising(noise=noise, time=torch.rand(*shape, generator=generator, device=where))
        logit = torch.randn(*shape, generator=generator, device=where) + self.time_mean
        return Noising(noise=noise, time=logit.sigmoid())

    def loss(self, z: Tensor, target: Tensor, drawn: Noising) -> Tensor:
        """z (M, D), target (M, C) -> mean squared error of the velocity, (M,) fp32."""
        z, x = z.repeat(self.repeats, 1), target.float().repeat(self.repeats, 1)
        noise, t = drawn.noise.flatten(0, 1).to(x.device), drawn.time.reshape(-1, 1).to(x.device)
        return self.error(z, x, t, noise).view(self.repeats, -1).mean(0)

    def error(self, z: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z (M, D), x and noise (M, C), t (M, 1) in [0, 1] -> mean squared error of the velocity, (M,)."""
        velocity = self.velocity(t * x + (1 - t) * noise, self.time_scale * t[:, 0], z)
        return (velocity - (x - noise)).square().mean(-1)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        *,
        noise: Callable[[], Tensor],
        z_null: Tensor | None = None,
        guidance: Tensor | float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """(M, D) -> (M, C) fp32; the temperature scales the initial noise."""
        velocity = guided(self.velocity, z, z_null, guidance)
        times = flow_times(self.solver_steps, self.time_shift)
        return integrate(velocity, temperature * noise(), times, self.solver, self.time_scale)


def flow_times(steps: int, shift: float = 1.0) -> list[float]:
    """Times 0 = t_0 < … < t_steps = 1, even and then shifted: t ← t / (t + s − s·t) (D-JEPA-T2I)."""
    even = [n / steps for n in range(steps + 1)]
    return [t / (t + shift - shift * t) for t in even]


def integrate(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    solver: FlowSolver,
    time_scale: float = 1000.0,
) -> Tensor:
    """Solve dx/dt = velocity(x, time_scale·t) over the times given. Heun's last step is Euler's, as in EDM.

    diffusers' flow schedulers solve the same equation, but on grids of their own; tests hold this against them.
    """
    for t, t_next in pairwise(times):
        dt, v = t_next - t, velocity(x, time_scale * t)
        if solver == "heun" and t_next < 1:
            v = (v + velocity(x + dt * v, time_scale * t_next)) / 2
        x = x + dt * v
    return x
