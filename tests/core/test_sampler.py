from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from djepa_mm.core.djepa import DJEPA
from djepa_mm.core.sampler import Sampler
from djepa_mm.core.types import Condition, TokenBatch

Build = Callable[..., DJEPA]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pick(batch: TokenBatch, rows: list[int], count: int | None = None) -> dict[str, object]:
    """Arguments of `sample` for some rows, cut to `count` tokens."""
    c = batch.condition
    condition = Condition(values=c.values[rows], valid=c.valid[rows], positions=c.positions[rows])
    return {"positions": batch.positions[rows, :count], "valid": batch.valid[rows, :count], "condition": condition}


class Watched:
    """A model that remembers what was known at every step."""

    def __init__(self, model: DJEPA) -> None:
        self.model, self.token_dim, self.head = model, model.token_dim, model.head
        self.known: list[torch.Tensor] = []

    def features(
        self, tokens: torch.Tensor, positions: torch.Tensor, known: torch.Tensor, *rest: object, null: bool = False
    ):
        if not null:
            self.known.append(known.clone())
        return self.model.features(tokens, positions, known, *rest, null=null)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3, 7, 12, 30])
@pytest.mark.parametrize("order", ["random", "raster", "frames", "tubes"])
def test_each_token_is_revealed_exactly_once(text_model: Build, text_batch: TokenBatch, steps: int, order: str) -> None:
    model = Watched(text_model())
    sampler = Sampler(ar_steps=steps, order=order)  # type: ignore[arg-type]
    tokens = sampler(model, **pick(text_batch, [0, 1, 2]), generators=generators(0, 1, 2))  # type: ignore[arg-type]
    states = [*model.known, text_batch.valid]
    for before, after in itertools.pairwise(states):
        assert (before & ~after).sum() == 0  # nothing is forgotten
        assert ((after & ~before).sum(1) >= ((~before & text_batch.valid).sum(1) > 0)).all()  # one new at least
    assert (tokens[text_batch.valid].abs().sum(-1) > 0).all()
    assert tokens[~text_batch.valid].abs().sum() == 0


@pytest.mark.parametrize("order", ["random", "raster", "frames", "tubes"])
@pytest.mark.parametrize("leave_one", [False, True])
def test_nothing_to_sample_is_what_is_known(
    picture_model: Build, picture_batch: TokenBatch, order: str, leave_one: bool
) -> None:
    """One item has all its tokens, the other none: every order can do with nothing."""
    known = torch.zeros(2, picture_batch.tokens.shape[1], dtype=torch.bool)
    known[0] = True
    sampler = Sampler(ar_steps=3, order=order, leave_one=leave_one)  # type: ignore[arg-type]
    given = {"tokens": picture_batch.tokens[:2], "known": known, "generators": generators(0, 1)}
    tokens = sampler(picture_model(), **pick(picture_batch, [0, 1]), **given)  # type: ignore[arg-type]
    assert torch.equal(tokens[0], picture_batch.tokens[0])
    assert (tokens[1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_sample_does_not_depend_on_its_batch(text_model: Build, text_batch: TokenBatch, guidance: float) -> None:
    """The same seed gives the same sample alone and in a padded batch."""
    model, sampler = text_model(), Sampler(ar_steps=5, guidance=guidance)
    together = sampler(model, **pick(text_batch, [0, 1, 2]), generators=generators(7, 8, 9))  # type: ignore[arg-type]
    for n, seed in enumerate((7, 8, 9)):
        count = int(text_batch.valid[n].sum())
        one = sampler(model, **pick(text_batch, [n], count), generators=generators(seed))  # type: ignore[arg-type]
        torch.testing.assert_close(together[n, :count], one[0], atol=1e-4, rtol=1e-4)


def test_seed_decides(picture_model: Build, picture_batch: TokenBatch) -> None:
    model, sampler = picture_model(), Sampler(ar_steps=3)
    first, again, other = (
        sampler(model, **pick(picture_batch, [0, 0, 0, 0]), generators=generators(*seeds))  # type: ignore[arg-type]
        for seeds in ((1, 2, 3, 4), (1, 2, 3, 4), (5, 2, 3, 4))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], other[0])
    torch.testing.assert_close(first[1:], other[1:])


def test_known_tokens_stay(picture_model: Build, picture_batch: TokenBatch) -> None:
    known = torch.zeros_like(picture_batch.valid)
    known[:, ::3] = True
    tokens = Sampler(ar_steps=4)(
        picture_model(),
        **pick(picture_batch, [0, 1, 2, 3]),  # type: ignore[arg-type]
        generators=generators(0, 1, 2, 3),
        tokens=picture_batch.tokens,
        known=known,
    )
    assert torch.equal(tokens[known], picture_batch.tokens[known])
    assert not torch.allclose(tokens[~known], picture_batch.tokens[~known])


def test_all_known_is_a_copy(picture_model: Build, picture_batch: TokenBatch) -> None:
    known = picture_batch.valid.clone()
    tokens = Sampler(ar_steps=4)(
        picture_model(),
        **pick(picture_batch, [0, 1, 2, 3]),
        generators=generators(0, 1, 2, 3),
        tokens=picture_batch.tokens,
        known=known,  # type: ignore[arg-type]
    )
    assert torch.equal(tokens, picture_batch.tokens)


def test_linear_guidance_grows_to_its_value(picture_batch: TokenBatch) -> None:
    sampler = Sampler(guidance=3.0)
    known = torch.zeros_like(picture_batch.valid)
    known[:, :6] = True
    assert sampler._guidance(known, picture_batch.valid, torch.full((4,), 6)).tolist() == [3.0] * 4
    assert sampler._guidance(known, picture_batch.valid, torch.full((4,), 0)).tolist() == [2.0] * 4
    left = Sampler(guidance=3.0, leave_one=True)  # (N − 1)/N of N = 12 at the end
    assert left._guidance(known, picture_batch.valid, torch.full((4,), 6)).tolist() == pytest.approx(
        [1 + 2 * 11 / 12] * 4
    )
    assert left._guidance(known, picture_batch.valid, torch.full((4,), 0)).tolist() == [2.0] * 4
    constant = Sampler(guidance=3.0, guidance_schedule="constant")
    assert constant._guidance(known, picture_batch.valid, torch.full((4,), 0)).tolist() == [3.0] * 4


def test_guidance_below_one_and_no_temperature(picture_model: Build, picture_batch: TokenBatch) -> None:
    """Guidance 0 is the null condition alone, half is between; without noise, seeds decide nothing but the order."""
    model = picture_model()

    def sample(guidance: float, rows: list[int], *, temperature: float = 1.0, seed: int = 3) -> torch.Tensor:
        sampler = Sampler(
            ar_steps=3, guidance=guidance, guidance_schedule="constant", temperature=temperature, order="raster"
        )
        return sampler(model, **pick(picture_batch, rows), generators=generators(*[seed] * len(rows)))  # type: ignore[arg-type]

    one, other = sample(0.0, [0, 1])
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    half = sample(0.5, [0, 1])
    assert half.isfinite().all()
    assert not torch.allclose(half[0], half[1])
    assert not torch.allclose(half[0], one)
    cold = [sample(1.0, [0], temperature=0.0, seed=seed) for seed in (1, 2)]
    assert cold[0].isfinite().all()
    assert torch.equal(*cold)


def test_sweeps_hide_fewer_and_fewer_of_what_was_free(text_model: Build, text_batch: TokenBatch) -> None:
    given = torch.zeros_like(text_batch.valid)
    given[:, ::3] = True
    given &= text_batch.valid
    model, sampler, told = Watched(text_model()), Sampler(ar_steps=4, sweeps=3, sweep_share=0.75), []
    tokens = sampler(
        model,
        **pick(text_batch, [0, 1, 2]),  # type: ignore[arg-type]
        generators=generators(0, 1, 2),
        tokens=text_batch.tokens,
        known=given,
        progress=lambda done, total: told.append((done, total)),
    )
    assert sampler.passes == [(1.0, 4), (0.75, 3), (0.375, 2), (0.0, 1)]
    assert told == [(n + 1, 10) for n in range(10)]
    free = (text_batch.valid & ~given).sum(1)
    for first, share in ((0, 1.0), (4, 0.75), (7, 0.375), (9, 0.0)):
        hidden = text_batch.valid & ~model.known[first]
        assert hidden.sum(1).tolist() == (free * share).ceil().clamp_min(1).tolist()
        assert not (hidden & given).any()
    assert torch.equal(tokens[given], text_batch.tokens[given])
    assert tokens.isfinite().all()
    assert tokens[~text_batch.valid].abs().sum() == 0


def test_sweeps_do_not_depend_on_the_batch(text_model: Build, text_batch: TokenBatch) -> None:
    model, sampler = text_model(), Sampler(ar_steps=3, guidance=2.0, sweeps=4)
    together = sampler(model, **pick(text_batch, [0, 1, 2]), generators=generators(7, 8, 9))  # type: ignore[arg-type]
    for n, seed in enumerate((7, 8, 9)):
        count = int(text_batch.valid[n].sum())
        one = sampler(model, **pick(text_batch, [n], count), generators=generators(seed))  # type: ignore[arg-type]
        torch.testing.assert_close(together[n, :count], one[0], atol=1e-4, rtol=1e-4)


class PairOfNormals:
    """Knows the conditionals of two numbers of unit variance that go together, exactly."""

    token_dim, together = 1, 0.9

    @property
    def head(self) -> PairOfNormals:
        return self

    def features(self, tokens: torch.Tensor, positions: torch.Tensor, known: torch.Tensor, *rest: object):
        other_known, other = known.flip(1)[..., None], tokens.flip(1)
        mean = self.together * other * other_known
        deviation = torch.where(other_known, (1 - self.together**2) ** 0.5, 1.0)
        return torch.cat([mean, deviation.expand_as(mean)], dim=-1)

    def sample(self, z: torch.Tensor, *, noise: Callable[[], torch.Tensor], **options: object) -> torch.Tensor:
        return z[:, :1] + z[:, 1:] * noise()


@pytest.mark.parametrize(("sweeps", "expected"), [(0, 0.0), (30, PairOfNormals.together)])
def test_sweeps_bring_together_what_was_drawn_at_once(sweeps: int, expected: float) -> None:
    """Both numbers in one step know nothing of each other; sweeps of one place alone are Gibbs sampling."""
    count, nothing = 4000, torch.zeros(4000, 1, 1)
    tokens = Sampler(ar_steps=1, sweeps=sweeps, sweep_share=0.5)(
        PairOfNormals(),  # type: ignore[arg-type]
        positions=torch.zeros(count, 2, 3),
        valid=torch.ones(count, 2, dtype=torch.bool),
        condition=Condition(values=nothing, valid=nothing[..., 0] == 0, positions=nothing.expand(-1, -1, 3)),
        generators=generators(*range(count)),
    )
    assert torch.corrcoef(tokens[..., 0].T)[0, 1].item() == pytest.approx(expected, abs=0.05)
    assert tokens.std().item() == pytest.approx(1, abs=0.05)


def test_progress_is_told(picture_model: Build, picture_batch: TokenBatch) -> None:
    told: list[tuple[int, int]] = []
    Sampler(ar_steps=3)(
        picture_model(),
        **pick(picture_batch, [0, 1, 2, 3]),  # type: ignore[arg-type]
        generators=generators(0, 1, 2, 3),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_guidance_leads_away_from_a_negative_condition(picture_model: Build, picture_batch: TokenBatch) -> None:
    """From another item's, or of a part of a batch; the others keep the null condition."""
    model, c = picture_model(), picture_batch.condition
    sampler = Sampler(ar_steps=3, guidance=2.5)

    def sample(rows: list[int], negative: tuple[Condition, torch.Tensor] | None) -> torch.Tensor:
        seeds = generators(*range(len(rows)))
        return sampler(model, **pick(picture_batch, rows), generators=seeds, negative=negative)  # type: ignore[arg-type]

    plain = sample([0, 1, 2], None)
    others = Condition(values=c.values[[1, 0, 2]], valid=c.valid[:3], positions=c.positions[:3])
    mixed = sample([0, 1, 2], (others, torch.tensor([False, True, False])))
    torch.testing.assert_close(mixed[1], plain[1])
    assert not torch.allclose(mixed[0], plain[0])
    unguided = Sampler(ar_steps=3)(model, **pick(picture_batch, [2]), generators=generators(2))  # type: ignore[arg-type]
    same = sample([0, 1, 2], (others, torch.tensor([True, True, False])))[2]
    torch.testing.assert_close(same, unguided[0], atol=1e-4, rtol=1e-4)  # away from itself is nowhere
