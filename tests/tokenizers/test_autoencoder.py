"""The network of learned tokens: what its tokens depend on, and what they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from djepa_mm.tokenizers.autoencoder import Autoencoder, AutoencoderConfig
from djepa_mm.types import MediaSpec

GRID = (6, 2, 2)
RAW, CHANNELS, DEPTH = 5, 3, 2
SPEC = MediaSpec(grid=GRID, shape=())


def network(**keys: Any) -> Autoencoder:
    """Of random weights, in which every layer says something."""
    made = Autoencoder(RAW, AutoencoderConfig(width=24, heads=2, depth=DEPTH, channels=CHANNELS, **keys))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


def times() -> Tensor:
    return SPEC.positions()[:, 0]


@torch.no_grad()
def both_ways(made: Autoencoder, tokens: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents (1, N, 2K), and raw tokens (1, N, P), of one clip."""
    positions = SPEC.positions()[None, : tokens.shape[1]]
    return torch.cat(made.posterior(tokens, positions), -1), made.decode(latents, positions)


@pytest.fixture
def clip() -> tuple[Tensor, Tensor]:
    """Raw tokens and latents."""
    return torch.randn(1, SPEC.num_tokens, RAW), torch.randn(1, SPEC.num_tokens, CHANNELS)


@pytest.mark.parametrize("bottleneck", ["kl", "sphere"])
@pytest.mark.parametrize("first", [1, 4])
def test_causal_tokens_do_not_depend_on_what_comes_later(
    clip: tuple[Tensor, Tensor], first: int, bottleneck: str
) -> None:
    """Neither there nor back; and so those of a clip that ends there are the same."""
    made, known = network(causal=True, bottleneck=bottleneck), times() < first
    changed = [torch.where(known[:, None], one, torch.randn(one.shape)) for one in clip]
    ended = [one[:, known] for one in clip]
    for whole, other, cut in zip(*(both_ways(made, *some) for some in (clip, changed, ended)), strict=True):
        torch.testing.assert_close(other[:, known], whole[:, known], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(cut, whole[:, known], atol=1e-5, rtol=1e-5)
        assert (other[:, ~known] - whole[:, ~known]).abs().amax(-1).min() > 1e-4
    unmasked = network(bottleneck=bottleneck)
    for whole, other in zip(both_ways(unmasked, *clip), both_ways(unmasked, *changed), strict=True):
        assert (other[:, known] - whole[:, known]).abs().max() > 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_reaches_as_far_as_its_blocks_do_together(clip: tuple[Tensor, Tensor], causal: bool) -> None:
    """Of two tokens' times, in two blocks: the token itself and two times before, and after where it is not causal."""
    made, at = network(causal=causal, window=2), 2
    changed = [torch.where(times()[:, None] == at, torch.randn(one.shape), one) for one in clip]
    reach = DEPTH * (2 - 1)
    away = times() - at
    within = (away >= (0 if causal else -reach)) & (away <= reach)
    for whole, other in zip(both_ways(made, *clip), both_ways(made, *changed), strict=True):
        torch.testing.assert_close(other[:, ~within], whole[:, ~within], atol=1e-6, rtol=1e-6)
        assert (other[:, within] - whole[:, within]).abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("keys", [{}, {"causal": True}, {"window": 2}, {"causal": True, "window": 1}])
def test_padding_changes_nothing(keys: dict[str, Any]) -> None:
    """Whatever it holds; of items of other lengths, heights and widths."""
    made = network(**keys)
    specs = [MediaSpec(grid=grid, shape=()) for grid in ((2, 2, 3), (6, 1, 1), (1, 4, 2), (1, 1, 1))]
    longest = max(spec.num_tokens for spec in specs)
    valid = torch.arange(longest) < torch.tensor([spec.num_tokens for spec in specs])[:, None]
    positions = torch.zeros(len(specs), longest, 3)
    for n, spec in enumerate(specs):
        positions[n, : spec.num_tokens] = spec.positions()
    tokens = 50 * torch.randn(len(specs), longest, RAW)
    latents = 50 * torch.randn(len(specs), longest, CHANNELS)
    tokens[valid], latents[valid] = torch.randn(int(valid.sum()), RAW), torch.randn(int(valid.sum()), CHANNELS)
    with torch.no_grad():
        together = (*made.posterior(tokens, positions, valid), made.decode(latents, positions, valid))
        for n, spec in enumerate(specs):
            count = spec.num_tokens
            one = slice(n, n + 1), slice(count)
            alone = (*made.posterior(tokens[one], positions[one]), made.decode(latents[one], positions[one]))
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[one], theirs, atol=1e-5, rtol=1e-5)
        assert all(one.isfinite().all() for one in together)


def test_a_picture_is_a_clip_of_one_frame() -> None:
    made, picture = network(causal=True), MediaSpec(grid=(1, 2, 2), shape=())
    clip = torch.randn(1, SPEC.num_tokens, RAW)
    with torch.no_grad():
        of_clip, _ = made.posterior(clip, SPEC.positions()[None])
        of_picture, _ = made.posterior(clip[:, :4], picture.positions()[None])
    torch.testing.assert_close(of_picture, of_clip[:, :4], atol=1e-5, rtol=1e-5)
