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
    dpm_solver,
    levels,
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


@pytest.mark.parametrize("steps", [2, 10, 25, 100, 1000])
def test_respacing_equals_diffusers(steps: int) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    assert [*reversed(respaced(steps))] == scheduler.timesteps.tolist()


def test_respacing_adds_up_as_the_authors_do() -> None:
    """Where a place lies half-way between two steps, the sum's last bits decide: for 276 counts not as when divided."""
    halves = {n: torch.linspace(999, 0, n, dtype=torch.float64).tolist()[::-1] for n in range(2, 1001)}
    divided = {n: tuple(round(x) for x in places) for n, places in halves.items()}
    differing = [n for n in divided if respaced(n) != divided[n]]
    assert len(differing) == 276
    assert differing[:3] == [21, 23, 31]
    assert all(len(set(respaced(n))) == n and respaced(n)[-1] == 999 for n in divided)


@pytest.mark.parametrize("place", [0, 40, 98, 99])
def test_ddpm_step_equals_diffusers(place: int) -> None:
    """Learned-range variance, 100 respaced steps, temperature 1. Theirs is in fp32, and β with it."""
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample_range=LARGEST_TOKEN,
    )
    scheduler.set_timesteps(100)
    number = 99 - place
    x, epsilon, variance = torch.randn(3, 6, 4, generator=rng()).unbind(0)
    variance = variance.clamp(-1, 1)
    out = torch.cat([epsilon, variance], 1)
    theirs = scheduler.step(out, respaced(100)[number], x, generator=rng(5)).prev_sample
    level = levels(respaced(100), x.device).at(number)
    ours = level.mean(level.denoised(x, epsilon, LARGEST_TOKEN), x)
    if number:
        ours = ours + (level.log_variance(variance) / 2).exp() * torch.randn(6, 4, generator=rng(5))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


# --- Gaussian diffusion against its formulas in float64


def awake_head(**options: object) -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(token_dim=3, feature_width=5, width=16, blocks=1, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return head


def exact(step: int, previous: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ᾱ, ᾱ of the level before, β and β̃ in float64 (Ho et al. 2020, eq. 7)."""
    alpha_bar = cosine_alpha_bar()[step]
    before = torch.ones((), dtype=torch.float64) if previous is None else cosine_alpha_bar()[previous]
    beta = 1 - alpha_bar / before
    return alpha_bar, before, beta, beta * (1 - before) / (1 - alpha_bar)


def estimated(step: int, previous: int | None, x_t: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Mean of p(x_prev | x_t), without a bound of x̂."""
    alpha_bar, before, beta, _ = exact(step, previous)
    x = (x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    return (before.sqrt() * beta * x + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha_bar)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_one_steps_mean_variance_and_temperature(temperature: float) -> None:
    """Two respaced steps, 999 and 0: what comes out is the second's mean of what the first draws."""
    head = awake_head(solver_steps=2, largest_token=None)
    z, first, second = torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 3)
    drawn = iter([first, second, torch.zeros(4, 3)])
    out = head.sample(z, noise=lambda: next(drawn), temperature=temperature)
    with torch.no_grad():
        epsilon, share = (part.double() for part in head.mlp(first, torch.tensor([999.0]), z).chunk(2, dim=-1))
        _, _, beta, tilde = exact(999, 0)
        deviation = (((share + 1) * beta.log() + (1 - share) * tilde.log()) / 4).exp()
        x = estimated(999, 0, first.double(), epsilon) + temperature * deviation * second.double()
        epsilon = head.mlp(x.float(), torch.tensor([0.0]), z).chunk(2, dim=-1)[0].double()
        expected = estimated(0, None, x, epsilon)
    assert float((out - expected).norm() / expected.norm()) < 1e-6


def exact_bound(step: int, x: torch.Tensor, x_t: torch.Tensor, epsilon: torch.Tensor, share: torch.Tensor):
    """KL(q(x_prev | x_t, x) ‖ p) in bits a channel, or −log p(x | x_t) at the first step, written out in float64."""
    previous = step - 1 if step else None
    alpha_bar, before, beta, tilde = exact(step, previous)
    if not step:
        tilde = exact(1, 0)[3]
    log_var = (1 + share) / 2 * beta.log() + (1 - share) / 2 * tilde.log()
    mean = estimated(step, previous, x_t, epsilon)
    if step:
        true = (before.sqrt() * beta * x + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha_bar)
        kl = (log_var - tilde.log() + (tilde + (true - mean) ** 2) / log_var.exp() - 1) / 2
        return kl.mean(-1) / np.log(2)

    def cdf(y: torch.Tensor) -> torch.Tensor:  # Page's approximation, as the authors have it
        y = y / (log_var / 2).exp()
        return 0.5 * (1 + torch.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

    high = torch.where(x > 0.999, 1.0, cdf(x - mean + 1 / 255))
    low = torch.where(x < -0.999, 0.0, cdf(x - mean - 1 / 255))
    return -(high - low).clamp_min(1e-12).log().mean(-1) / np.log(2)


@pytest.mark.parametrize("step", [0, 1, 2, 500, 999])
def test_the_bound_at_every_end(step: int) -> None:
    head = awake_head(largest_token=None)
    z, x, noise = torch.randn(64, 5), 0.5 * torch.randn(64, 3), torch.randn(64, 3)
    error, bound = head.terms(z, x, torch.full((64,), step), noise)
    alpha_bar = cosine_alpha_bar()[step]
    x_t = alpha_bar.sqrt() * x.double() + (1 - alpha_bar).sqrt() * noise.double()
    epsilon, share = (
        p.detach().double() for p in head.mlp(x_t.float(), torch.full((64,), float(step)), z).chunk(2, -1)
    )
    expected = exact_bound(step, x.double(), x_t, epsilon, share)
    torch.testing.assert_close(bound.detach().double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(error.detach().double(), (epsilon - noise).square().mean(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output", [-50.0, -10.0, -3.4, 0.0, 10.0])
def test_the_bound_is_finite_whatever_the_variance(output: float) -> None:
    x, x_t, epsilon = torch.randn(3, 8, 4, generator=rng()).unbind(0)
    variance = torch.full((8, 4), output, requires_grad=True)
    step = torch.tensor([0, 0, 0, 1, 2, 10, 500, 999])
    level = levels(tuple(range(1000)), x.device).at(step)
    bound = level.bound(x, x_t, epsilon, variance, step[:, None] == 0, LARGEST_TOKEN)
    bound.sum().backward()
    assert bound.isfinite().all()
    assert variance.grad is not None
    assert variance.grad.isfinite().all()


def test_near_pure_noise_the_bound_is_of_the_bounded_token() -> None:
    """An error of 0.1 in ε at t = 999 is a huge one of x̂: trained on by the authors, ruled out by us."""
    x, noise = torch.randn(2, 8, 4, generator=rng()).unbind(0)
    step = torch.full((8,), 999)
    level = levels(tuple(range(1000)), x.device).at(step)
    x_t, variance = level.signal * x + level.noise * noise, torch.zeros(8, 4)
    ours, theirs = (
        level.bound(x, x_t, noise + 0.1, variance, step[:, None] == 0, largest) for largest in (LARGEST_TOKEN, None)
    )
    assert ours.max() < 1
    assert theirs.min() > 1
    table = levels(tuple(range(1000)), x.device)
    beta = 1 - cosine_alpha_bar()[2] / cosine_alpha_bar()[1]
    assert table.high[2].exp().double().item() == pytest.approx(beta.item(), rel=1e-6)


def test_weights_of_older_checkpoints_load() -> None:
    """They hold ᾱ among them."""
    head = awake_head()
    older = {**head.state_dict(), "alpha_bar": torch.zeros(1000)}
    torch.nn.ModuleDict({"head": awake_head()}).load_state_dict({f"head.{k}": v for k, v in older.items()})
    assert "alpha_bar" not in head.state_dict()


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_scale_of_time_is_what_the_embedding_sees(scale: float) -> None:
    """In training, in sampling, and where the data are predicted, which divides by what is left of it."""
    seen: list[float] = []
    head = FlowHead(token_dim=2, feature_width=2, width=8, blocks=1, time_scale=scale, predicts="data", solver_steps=4)
    head.mlp.time.register_forward_pre_hook(lambda module, args: seen.extend(args[0].tolist()))
    head.sample(torch.zeros(3, 2), noise=lambda: torch.ones(3, 2))
    assert seen == pytest.approx([0, scale / 4, scale / 2, 3 * scale / 4])
    seen.clear()
    head.loss(torch.zeros(50, 2), torch.zeros(50, 2), head.draw(50, rng()))
    assert scale / 2 < max(seen) <= scale


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


def fitted(kind: type, options: dict[str, str], steps: int = 150):
    torch.manual_seed(0)
    head = kind(token_dim=2, feature_width=2, width=48, blocks=2, **options)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = rng(1)
    for _ in range(steps):
        component = torch.randint(2, (256,), generator=generator)
        z = torch.nn.functional.one_hot(component, 2).float()
        optimizer.zero_grad()
        head.loss(z, mixture(component, generator), head.draw(256, generator)).mean().backward()
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
