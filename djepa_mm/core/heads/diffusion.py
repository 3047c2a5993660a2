"""Gaussian-diffusion head: cosine schedule, ε-prediction, learned-range variance (Nichol & Dhariwal 2021).

M tokens, C token channels, D width of the features, S sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from djepa_mm.core.heads.guidance import guided
from djepa_mm.core.heads.mlp import DenoisingMLP

DiffusionSolver = Literal["ddpm", "dpm-solver++"]
TRAIN_STEPS = 1000
# Near pure noise ᾱ is 1e-9, and the slightest error of ε becomes a huge x̂. Tokens have unit variance, so x̂ beyond this
# is wrong for sure; without the bound a head that is not fully trained runs away.
LARGEST_TOKEN = 10.0
SCHEDULE = {"num_train_timesteps": TRAIN_STEPS, "beta_schedule": "squaredcos_cap_v2"}


class DiffusionHead(nn.Module):
    """Gaussian diffusion for one token (MAR; D-JEPA §3): 1000 training steps, `solver_steps` respaced ones to sample.

    solver: `ddpm` is stochastic and obeys the temperature; `dpm-solver++` is deterministic after its initial noise,
    which the temperature scales.
    """

    alpha_bar: Tensor

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
    ) -> None:
        super().__init__()
        self.mlp = DenoisingMLP(
            in_channels=token_dim, out_channels=2 * token_dim, condition_width=feature_width, width=width, blocks=blocks
        )
        self.repeats, self.solver_steps, self.solver = repeats, solver_steps, solver
        self.register_buffer("alpha_bar", cosine_alpha_bar().float())

    def loss(self, z: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """z (M, D), target (M, C) -> mean squared error of ε plus the variance's variational bound, (M,) fp32."""
        z, x = z.repeat(self.repeats, 1), target.float().repeat(self.repeats, 1)
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        step = torch.randint(TRAIN_STEPS, (len(x),), generator=generator, device=generator.device).to(x.device)
        alpha_bar = self.alpha_bar[step, None]
        x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        epsilon, variance = self.mlp(x_t, step.float(), z).chunk(2, dim=-1)
        error = (epsilon - noise).square().mean(-1)
        bound = self._variance_bound(x, x_t, step, epsilon.detach(), variance)
        return (error + bound).view(self.repeats, -1).mean(0)

    def _variance_bound(self, x: Tensor, x_t: Tensor, step: Tensor, epsilon: Tensor, variance: Tensor) -> Tensor:
        """KL(q(x_{t−1} | x_t, x) ‖ p(x_{t−1} | x_t)) in bits a channel, (M,); it trains the variance alone.

        0 at the first step, whose variance no sampler uses."""
        alpha_bar = self.alpha_bar[step, None]
        previous = torch.where(step[:, None] > 0, self.alpha_bar[(step - 1).clamp_min(0), None], 1.0)
        posterior = Posterior(alpha_bar, previous)
        true_mean = posterior.mean(x, x_t)
        mean = posterior.mean(posterior.denoised(x_t, epsilon), x_t)
        true_log_var, log_var = posterior.log_variance(-1.0), posterior.log_variance(variance)
        kl = log_var - true_log_var - 1 + (true_log_var - log_var).exp() + (true_mean - mean) ** 2 * (-log_var).exp()
        return 0.5 * kl.mean(-1) / torch.log(torch.tensor(2.0)) * (step > 0)

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
        x = noise()
        for step, previous in pairwise([*respaced(self.solver_steps), -1]):
            epsilon, variance = model(x, float(step)).chunk(2, dim=-1)
            x = ddpm_step(self.alpha_bar, step, previous, x, epsilon, variance, temperature * noise())
        return x


class Posterior:
    """q(x_prev | x_t, x) of Gaussian diffusion between two levels of ᾱ (Ho et al. 2020, eq. 7)."""

    def __init__(self, alpha_bar: Tensor, previous: Tensor) -> None:
        self.alpha_bar, self.previous = alpha_bar, previous
        self.beta = 1 - alpha_bar / previous

    def denoised(self, x_t: Tensor, epsilon: Tensor) -> Tensor:
        x = (x_t - (1 - self.alpha_bar).sqrt() * epsilon) / self.alpha_bar.sqrt()
        return x.clamp(-LARGEST_TOKEN, LARGEST_TOKEN)

    def mean(self, x: Tensor, x_t: Tensor) -> Tensor:
        weight_x = self.previous.sqrt() * self.beta / (1 - self.alpha_bar)
        weight_t = (1 - self.beta).sqrt() * (1 - self.previous) / (1 - self.alpha_bar)
        return weight_x * x + weight_t * x_t

    def log_variance(self, learned: Tensor | float) -> Tensor:
        """Log variance between its lower bound (learned = −1) and its upper bound β (learned = 1)."""
        low = (self.beta * (1 - self.previous) / (1 - self.alpha_bar)).clamp_min(1e-20).log()
        share = (learned + 1) / 2
        return share * self.beta.log() + (1 - share) * low


def ddpm_step(
    alpha_bar: Tensor, step: int, previous: int, x_t: Tensor, epsilon: Tensor, variance: Tensor, noise: Tensor
) -> Tensor:
    """One ancestral step from `step` to `previous` (−1: the data), with the noise already scaled by temperature.

    diffusers' DDPMScheduler draws its noise itself, at temperature 1; tests hold this step against it."""
    posterior = Posterior(alpha_bar[step], alpha_bar[previous] if previous >= 0 else torch.ones_like(alpha_bar[0]))
    mean = posterior.mean(posterior.denoised(x_t, epsilon), x_t)
    if previous < 0:
        return mean
    return mean + (posterior.log_variance(variance) / 2).exp() * noise


def respaced(steps: int) -> list[int]:
    """`steps` of the training steps, evenly spread, first and last among them, falling."""
    return [round(x) for x in torch.linspace(TRAIN_STEPS - 1, 0, steps, dtype=torch.float64).tolist()]


@cache
def cosine_alpha_bar() -> Tensor:
    """ᾱ of the cosine schedule, (1000,) float64 (Nichol & Dhariwal 2021, eq. 17).

    β_t = min(1 − f(t+1) / f(t), 0.999) with f(t) = cos²((t + 0.008) / 1.008 · π/2)."""
    t = torch.linspace(0, 1, TRAIN_STEPS + 1, dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp_max(0.999), dim=0)


def dpm_solver() -> Any:
    """DPM-Solver++ of second order on the training schedule."""
    from diffusers.schedulers import DPMSolverMultistepScheduler  # seconds to import

    # lambda_min_clipped leaves out the noisiest steps, for the reason that LARGEST_TOKEN has; -5.1 is diffusers' advice
    return DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", final_sigmas_type="zero", lambda_min_clipped=-5.1
    )
