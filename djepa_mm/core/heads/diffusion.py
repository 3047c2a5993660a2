"""Gaussian-diffusion head: cosine schedule, ε-prediction, learned-range variance (Nichol & Dhariwal 2021).

M tokens, C token channels, D width of the features, S sampling steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from djepa_mm.core.heads.guidance import guided
from djepa_mm.core.heads.mlp import DenoisingMLP
from djepa_mm.core.types import Noising

DiffusionSolver = Literal["ddpm", "dpm-solver++"]
TRAIN_STEPS = 1000
LARGEST_TOKEN = 10.0
HALF_BIN = 1 / 255  # of the values that the likelihood at the first step tells apart in [-1, 1]
OUTER_BIN = 0.999  # beyond it, a value counts with all that lies further out
SCHEDULE = {"num_train_timesteps": TRAIN_STEPS, "beta_schedule": "squaredcos_cap_v2"}


class DiffusionHead(nn.Module):
    """Gaussian diffusion for one token (MAR; D-JEPA §3): 1000 training steps, `solver_steps` respaced ones to sample.

    solver: `ddpm` is stochastic and obeys the temperature; `dpm-solver++` is deterministic after its initial noise,
    which the temperature scales.
    largest_token: bound of the estimated token x̂, in sampling by `ddpm` and in the variance's bound. Near t = 1000 ᾱ is
    1e-9, so the slightest error of ε becomes a huge x̂, which tokens of unit variance rule out: a head that is not fully
    trained would run away, and its variance would be trained on that huge error (a bound of 195 bits where 0.0014 is
    meant). None is no bound, as the authors of MAR and D-JEPA train and sample: theirs means 195 there.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        feature_width: int,
        width: int,
        blocks: int,
        repeats: int = 4,
        solver_steps: int = 100,
        solver: DiffusionSolver = "ddpm",
        largest_token: float | None = LARGEST_TOKEN,
    ) -> None:
        super().__init__()
        self.mlp = DenoisingMLP(
            in_channels=token_dim, out_channels=2 * token_dim, condition_width=feature_width, width=width, blocks=blocks
        )
        self.token_dim = token_dim
        self.repeats, self.solver_steps, self.solver = repeats, solver_steps, solver
        self.largest_token = largest_token

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Older checkpoints hold ᾱ too, in fp32."""
        state_dict.pop(f"{prefix}alpha_bar", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def draw(self, count: int, generator: torch.Generator) -> Noising:
        """For so many tokens; times are steps of training, from 0."""
        shape, where = (self.repeats, count), generator.device
        noise = torch.randn(*shape, self.token_dim, generator=generator, device=where)
        return Noising(noise=noise, time=torch.randint(TRAIN_STEPS, shape, generator=generator, device=where))

    def loss(self, z: Tensor, target: Tensor, drawn: Noising) -> Tensor:
        """z (M, D), target (M, C) -> mean squared error of ε plus the variance's variational bound, (M,) fp32."""
        z, x = z.repeat(self.repeats, 1), target.float().repeat(self.repeats, 1)
        noise, step = drawn.noise.flatten(0, 1).to(x.device), drawn.time.flatten().to(x.device)
        error, bound = self.terms(z, x, step, noise)
        return (error + bound).view(self.repeats, -1).mean(0)

    def terms(self, z: Tensor, x: Tensor, step: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z (M, D), x and noise (M, C), step (M,) -> mean squared error of ε, and the bound in bits a channel: (M,).

        The bound trains the variance alone."""
        level = levels(tuple(range(TRAIN_STEPS)), x.device).at(step)
        x_t = level.signal * x + level.noise * noise
        epsilon, variance = self.mlp(x_t, step.float(), z).chunk(2, dim=-1)
        bound = level.bound(x, x_t, epsilon.detach(), variance, step[:, None] == 0, self.largest_token)
        return (epsilon - noise).square().mean(-1), bound

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
        """(M, D) -> (M, C) fp32; the temperature scales the solver's noise (`ddpm`) or the initial one."""
        model = guided(self.mlp, z, z_null, guidance)
        if self.solver == "ddpm":
            return self._sample_ddpm(model, noise, temperature)
        scheduler = dpm_solver()
        scheduler.set_timesteps(self.solver_steps)
        x = temperature * noise()
        for step in scheduler.timesteps:
            epsilon = model(x, float(step)).chunk(2, dim=-1)[0]
            x = scheduler.step(epsilon, step, x).prev_sample
        return x

    def _sample_ddpm(
        self, model: Callable[[Tensor, float], Tensor], noise: Callable[[], Tensor], temperature: float
    ) -> Tensor:
        """diffusers' DDPMScheduler draws its noise itself, at temperature 1; tests hold a step against it."""
        x = noise()
        steps = respaced(self.solver_steps)
        table = levels(steps, x.device)
        for n in reversed(range(len(steps))):
            epsilon, variance = model(x, float(steps[n])).chunk(2, dim=-1)
            level, drawn = table.at(n), noise()
            x = level.mean(level.denoised(x, epsilon, self.largest_token), x)
            if n:
                x = x + (level.log_variance(variance) / 2).exp() * drawn * temperature
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Levels of noise and, for each, p(x_prev | x_t) towards the level before it, and for the first towards the data.

    Every field is a number a level, or as many rows of (M, 1): worked out in float64, because β is a difference of
    nearly equal numbers (in fp32 it is off by 7e-4 at t = 2), and kept in fp32. x_t = signal · x + noise · ε (Ho et al.
    2020, eq. 4); the mean of x_prev is mean_x · x + mean_t · x_t (eq. 7); its log variance lies between low and high.
    """

    signal: Tensor
    noise: Tensor
    inverse: Tensor  # x̂ = inverse · x_t − inverse_noise · ε
    inverse_noise: Tensor
    mean_x: Tensor
    mean_t: Tensor
    low: Tensor  # of x_prev given x; the first level's, which would be −∞, is the second's
    high: Tensor  # log β

    def at(self, index: Tensor | int) -> Self:
        """Of rows (M,): each (M, 1). Of one level: each (1,)."""
        return type(self)(**{field.name: getattr(self, field.name)[index, None] for field in fields(self)})

    def denoised(self, x_t: Tensor, epsilon: Tensor, largest: float | None) -> Tensor:
        x = self.inverse * x_t - self.inverse_noise * epsilon
        return x if largest is None else x.clamp(-largest, largest)

    def mean(self, x: Tensor, x_t: Tensor) -> Tensor:
        return self.mean_x * x + self.mean_t * x_t

    def log_variance(self, learned: Tensor) -> Tensor:
        """Between its lower bound (learned = −1) and its upper bound (learned = 1)."""
        share = (learned + 1) / 2
        return share * self.high + (1 - share) * self.low

    def bound(
        self, x: Tensor, x_t: Tensor, epsilon: Tensor, variance: Tensor, first: Tensor, largest: float | None
    ) -> Tensor:
        """KL(q(x_prev | x_t, x) ‖ p(x_prev | x_t)) in bits a channel, and −log p(x | x_t) where `first`: (M,)."""
        mean, log_var = self.mean(self.denoised(x_t, epsilon, largest), x_t), self.log_variance(variance)
        apart = (self.mean(x, x_t) - mean).square() * (-log_var).exp()
        kl = 0.5 * (log_var - self.low - 1 + (self.low - log_var).exp() + apart)
        return torch.where(first, -log_likelihood(x, mean, log_var), kl).mean(-1) / math.log(2)


def log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of values x told apart in bins of 2/255, the outer of which are open (Ho et al. 2020, eq. 13), in nats.

    A published model's variance is trained with this of its latents, too."""
    precision, apart = (-log_variance / 2).exp(), x - mean
    # in the tail of the normal where its distribution is near 0, because differences of numbers near 1 lose their bits
    inside = normal_cdf((HALF_BIN - apart.abs()) * precision) - normal_cdf((-HALF_BIN - apart.abs()) * precision)
    lowest, highest = (normal_cdf((HALF_BIN + side) * precision) for side in (apart, -apart))
    found = torch.where(x < -OUTER_BIN, lowest, torch.where(x > OUTER_BIN, highest, inside))
    return found.clamp_min(1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """Page's approximation (1977), off by 3e-4 at most."""
    return (2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).sigmoid()


@cache
def levels(steps: tuple[int, ...], device: torch.device) -> Levels:
    """Of these training steps, rising, the first of which leads to the data."""
    alpha_bar = cosine_alpha_bar()[list(steps)]
    previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    beta = 1 - alpha_bar / previous
    variance = beta * (1 - previous) / (1 - alpha_bar)
    found = {
        "signal": alpha_bar.sqrt(),
        "noise": (1 - alpha_bar).sqrt(),
        "inverse": (1 / alpha_bar).sqrt(),
        "inverse_noise": (1 / alpha_bar - 1).sqrt(),
        "mean_x": beta * previous.sqrt() / (1 - alpha_bar),
        "mean_t": (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
        "low": torch.cat([variance[1:2], variance[1:]]).log(),
        "high": beta.log(),
    }
    return Levels(**{name: value.float().to(device) for name, value in found.items()})


def respaced(steps: int) -> tuple[int, ...]:
    """`steps` of the training steps, evenly spread, first and last among them, rising.

    Added up as MAR's and D-JEPA's code does it: for many counts its errors in the last place decide a rounding."""
    place, found = 0.0, []
    for _ in range(steps):
        found.append(round(place))
        place += (TRAIN_STEPS - 1) / (steps - 1)
    return tuple(found)


@cache
def cosine_alpha_bar() -> Tensor:
    """ᾱ of the cosine schedule, (1000,) float64 on the CPU (Nichol & Dhariwal 2021, eq. 17).

    β_t = min(1 − f(t+1) / f(t), 0.999) with f(t) = cos²((t + 0.008) / 1.008 · π/2)."""
    t = torch.linspace(0, 1, TRAIN_STEPS + 1, dtype=torch.float64, device="cpu")
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp_max(0.999), dim=0)


def dpm_solver() -> Any:
    """DPM-Solver++ of second order on the training schedule."""
    from diffusers.schedulers import DPMSolverMultistepScheduler  # seconds to import

    # lambda_min_clipped leaves out the noisiest steps, for the reason that largest_token has; -5.1 is diffusers' advice
    return DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", final_sigmas_type="zero", lambda_min_clipped=-5.1
    )
