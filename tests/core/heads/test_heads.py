"""Heads against diffusers, and against a distribution that is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from diffusers.schedulers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from djepa_mm.core.heads.diffusion import (
    LARGEST_TOKEN,
    DiffusionHead,
    cosine_alpha_bar,
    ddpm_step,
    dpm_solver,
    respaced,
)
from djepa_mm.core.heads.flow import FlowHead, flow_times, integrate
from djepa_mm.core.heads.guidance import guided


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- schedules and steps, against diffusers


def test_cosine_schedule_equals_diffusers() -> None:
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(cosine_alpha_bar().float(), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [2, 10, 100, 250, 1000])
def test_respacing_equals_diffusers(steps: int) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    assert respaced(steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("place", [0, 40, 98, 99])
def test_ddpm_step_equals_diffusers(place: int) -> None:
    """Learned-range variance, 100 respaced steps, temperature 1."""
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample_range=LARGEST_TOKEN,
    )
    scheduler.set_timesteps(100)
    steps = [*respaced(100), -1]
    x, epsilon, variance = torch.randn(3, 6, 4, generator=rng()).unbind(0)
    variance = variance.clamp(-1, 1)
    theirs = scheduler.step(torch.cat([epsilon, variance], 1), steps[place], x, generator=rng(5)).prev_sample
    noise = torch.randn(6, 4, generator=rng(5))
    alpha_bar = scheduler.alphas_cumprod
    ours = ddpm_step(alpha_bar, steps[place], steps[place + 1], x, epsilon, variance, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 4.5])
def test_flow_times_equal_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20).tolist())
    torch.testing.assert_close(1 - torch.tensor(flow_times(20, shift)), scheduler.sigmas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_flow_solvers_equal_diffusers(solver: str) -> None:
    """On diffusers' own times, for a velocity that bends."""

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        return torch.sin(3 * x) + x * float(time) / 1000

    kind = FlowMatchEulerDiscreteScheduler if solver == "euler" else FlowMatchHeunDiscreteScheduler
    scheduler = kind(shift=2.0)
    scheduler.set_timesteps(12)
    start = torch.randn(5, 3, generator=rng())
    x = start
    for timestep in scheduler.timesteps:
        x = scheduler.step(-velocity(x, 1000 - float(timestep)), timestep, x).prev_sample
    times = [1 - float(s) for s in dict.fromkeys(scheduler.sigmas.tolist())]
    torch.testing.assert_close(integrate(velocity, start, times, solver), x, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


def test_dpm_solver_shares_the_training_schedule() -> None:
    torch.testing.assert_close(dpm_solver().alphas_cumprod, cosine_alpha_bar().float(), atol=1e-5, rtol=0)


# --- guidance


def test_guidance_extrapolates_and_keeps_the_conditional_variance() -> None:
    def network(x: torch.Tensor, time: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, 10 * z], dim=1)

    z, null, x = torch.full((2, 3), 2.0), torch.full((2, 3), 1.0), torch.zeros(2, 3)
    out = guided(network, z, null, torch.tensor([[1.0], [3.0]]))(x, 0.0)
    assert out[:, :3].tolist() == [[2.0] * 3, [4.0] * 3]
    assert out[:, 3:].tolist() == [[20.0] * 3] * 2


# --- a known mixture


def mixture(component: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Two conditions: 0 is two narrow spots left and right, 1 is one wide spot above. -> (M, 2)"""
    side = torch.randint(2, component.shape, generator=generator) * 2.0 - 1
    noise = torch.randn(len(component), 2, generator=generator)
    spots = torch.stack([1.2 * side, torch.zeros_like(side)], 1) + 0.15 * noise
    wide = torch.tensor([0.0, 1.0]) + torch.tensor([0.6, 0.3]) * noise
    return torch.where(component[:, None] == 0, spots, wide)


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2·E|a − b| − E|a − a'| − E|b − b'|, 0 for equal distributions (Székely & Rizzo 2013)."""
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


HEADS = {
    "flow, euler": ("flow", {"solver": "euler", "steps": 40}),
    "flow, heun": ("flow", {"solver": "heun", "steps": 20}),
    "flow of data": ("flow of data", {"steps": 40}),
    "diffusion, ddpm": ("diffusion", {"solver": "ddpm", "steps": 100}),
    "diffusion, dpm-solver++": ("diffusion", {"solver": "dpm-solver++", "steps": 30}),
}


TRAINED: dict[str, tuple[type, dict[str, str]]] = {
    "flow": (FlowHead, {"time_sampling": "uniform"}),
    "flow of data": (FlowHead, {"time_sampling": "uniform", "predicts": "data"}),
    "diffusion": (DiffusionHead, {}),
}


def fitted(kind: type, options: dict[str, str], steps: int = 700):
    torch.manual_seed(0)
    head = kind(token_dim=2, feature_width=2, width=64, blocks=2, **options)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = rng(1)
    for _ in range(steps):
        component = torch.randint(2, (256,), generator=generator)
        z = torch.nn.functional.one_hot(component, 2).float()
        optimizer.zero_grad()
        head.loss(z, mixture(component, generator), generator).mean().backward()
        optimizer.step()
        schedule.step()
    return head


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.nn.Module]:
    return {name: fitted(*how) for name, how in TRAINED.items()}


@pytest.mark.parametrize("name", HEADS)
def test_heads_fit_a_known_mixture(trained: dict[str, torch.nn.Module], name: str) -> None:
    """The energy distance to fresh samples is near 0, as between two real sets, and not to the wrong component."""
    which, options = HEADS[name]
    head = trained[which]
    for key, value in options.items():
        setattr(head, key, value)
    for component in (0, 1):
        label = torch.full((2000,), component)
        z = torch.nn.functional.one_hot(label, 2).float()
        sample = head.sample(z, noise=partial(torch.randn, 2000, 2, generator=rng(2)))  # type: ignore[operator]
        assert energy_distance(sample, mixture(label, rng(3))) < 0.04
        assert energy_distance(sample, mixture(1 - label, rng(3))) > 0.2


def test_temperature_narrows_samples(trained: dict[str, torch.nn.Module]) -> None:
    z = torch.tensor([[0.0, 1.0]]).expand(1000, -1)
    for head in trained.values():
        if isinstance(head, DiffusionHead):
            head.solver, head.steps = "ddpm", 50
        cold, warm = (
            head.sample(z, noise=partial(torch.randn, 1000, 2, generator=rng(2)), temperature=t)  # type: ignore[operator]
            for t in (0.5, 1.0)
        )
        assert cold.std(0).max() < 0.8 * warm.std(0).max()
