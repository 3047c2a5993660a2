"""Every tokenizer in the folder keeps the contract of types.Tokenizer, from the day its file appears.

A required field of a config carries its example: `patch: PositiveInt = Field(examples=[4])`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support import of_pictures, realistic, write_pictures

from djepa_mm.data.check import check_media
from djepa_mm.layout import part_folder
from djepa_mm.training.tokenizer import train_tokenizer
from djepa_mm.types import Config, Extent, MediaSpec, Tokenizer, UserError

FOLDER = part_folder("tokenizers")
CONFIGS = [
    value
    for path in sorted(FOLDER.glob("*.py"))
    for value in vars(importlib.import_module(f"djepa_mm.tokenizers.{path.stem}")).values()
    if isinstance(value, type) and issubclass(value, Config) and "kind" in value.model_fields
]
DURATION_S = 0.6


@dataclass
class Corpus:
    """A source of which tokenizers ask only what its media are."""

    sample_rate_hz: int


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random VAE, for tokenizers that take a pretrained `model`."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(8, 8), norm_num_groups=4, sample_size=16
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small trained tokenizer, for those that take the `path` of one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    root = write_pictures(folder / "pictures", *[(3, 16, 32)] * 8)
    model = {"width": 12, "depth": 0, "heads": 2, "channels": 32}
    recipe = of_pictures(
        root, (16, 32), model=model, **{"optim.steps": 150, "optim.lr": 1e-2, "optim.ema_decay": 0.9,
        "batch": {"size": 8, "cache": True}, "loss.kl": 0.0, "run.log_every": 150},
    )  # fmt: skip
    train_tokenizer(recipe, folder / "run")
    return str(folder / "run")


@pytest.fixture(params=CONFIGS, ids=lambda config: config.__name__)
def config(request: pytest.FixtureRequest, vae_folder: str, tokenizer_run: str) -> Any:
    values: dict[str, Any] = {}
    for name, field in request.param.model_fields.items():
        if name in ("kind", "source"):
            values[name] = get_args(field.annotation)[0]
        elif name == "model":
            values[name] = vae_folder
        elif name == "path":
            values[name] = tokenizer_run
        elif field.is_required():
            assert field.examples, f"{request.param.__name__}.{name} is required: give it Field(examples=[...])"
            values[name] = field.examples[0]
    return request.param(**values)


def spec(tokenizer: Tokenizer) -> MediaSpec:
    """The usual size, or half a second where there is none."""
    try:
        return tokenizer.spec_for()
    except UserError:
        return tokenizer.spec_for(Extent(duration_s=DURATION_S))


def axes_of(wanted: MediaSpec) -> tuple[int, int, int]:
    """Samples or frames, rows and columns."""
    axes = wanted.shape if len(wanted.shape) == 1 else wanted.shape[1:]  # (samples,), (H, W) or (T, H, W)
    t, h, w = {1: (*axes, 1, 1), 2: (1, *axes), 3: axes}[len(axes)]
    return t, h, w


def test_media_and_tokens_have_the_shapes_that_the_spec_says(config: Any) -> None:
    tokenizer = config.build()
    wanted = spec(tokenizer)
    media = realistic(wanted.shape, 0)
    tokens = tokenizer.encode(media)
    assert tokenizer.spec_of(tuple(media.shape[1:])) == wanted
    assert tokens.shape == (2, wanted.num_tokens, tokenizer.token_dim)
    assert wanted.positions().shape == (wanted.num_tokens, 3)
    assert not tokens.requires_grad
    back = tokenizer.decode(tokens, wanted)
    assert back.shape == media.shape
    assert back.isfinite().all()


def test_an_item_has_the_same_tokens_alone_and_in_a_batch(config: Any) -> None:
    tokenizer = config.build()
    media = realistic(spec(tokenizer).shape, 0)
    torch.testing.assert_close(tokenizer.encode(media)[:1], tokenizer.encode(media[:1]), atol=1e-4, rtol=1e-4)


def test_fit_brings_tokens_to_unit_variance(config: Any) -> None:
    tokenizer = config.build()
    shape = spec(tokenizer).shape
    corpus = torch.cat([realistic(shape, seed) for seed in range(8)])
    tokenizer.fit(iter(corpus))
    if not tokenizer.state():
        pytest.skip("this tokenizer's scale is given, not learned")
    tokens = tokenizer.encode(corpus)
    assert tokens.mean().abs() < 0.02
    assert tokens.std() == pytest.approx(1, abs=0.02)


def test_decoding_undoes_encoding(config: Any) -> None:
    """Well enough that what comes back is far nearer to its origin than to another item, in tokens."""
    if "model" in type(config).model_fields:
        pytest.skip("a VAE with random weights does not decode what it encoded")
    tokenizer = config.build()
    wanted = spec(tokenizer)
    media = realistic(wanted.shape, 0)
    tokenizer.fit(iter(media))
    tokens = tokenizer.encode(media)
    again = tokenizer.encode(tokenizer.decode(tokens, wanted))
    error = (again - tokens).square().mean().sqrt()
    distance = (tokens[0] - tokens[1]).square().mean().sqrt()
    assert error < 0.35 * distance


def test_what_fit_learned_survives_the_checkpoint(config: Any) -> None:
    tokenizer, restored = config.build(), config.build()
    wanted = spec(tokenizer)
    media = realistic(wanted.shape, 0)
    tokenizer.fit(iter(media))
    restored.load_state({name: value.clone() for name, value in tokenizer.state().items()})
    tokens = tokenizer.encode(media)
    torch.testing.assert_close(restored.encode(media), tokens)
    torch.testing.assert_close(restored.decode(tokens, wanted), tokenizer.decode(tokens, wanted))


def test_saved_files_and_previews_can_be_opened(config: Any, tmp_path: Path) -> None:
    tokenizer = config.build()
    kind, wanted = tokenizer.media, spec(tokenizer)
    media = realistic(wanted.shape, 0)[0]
    assert min(kind.preview(media).size) >= 64
    for suffix in kind.suffixes:
        path = tmp_path / f"item{suffix}"
        kind.save(media, path)
        back = kind.load(path)
        assert back.shape == media.shape, suffix
        assert torch.equal(kind.load(path, wanted.shape), back)
        if media.dim() == 1:
            torch.testing.assert_close(back, media, atol=1e-4, rtol=0)
        elif suffix == ".png" or (suffix == ".webp" and media.dim() == 3):
            torch.testing.assert_close(back, media, atol=0.01, rtol=0)
        else:  # others lose detail
            assert (back - media).square().mean().sqrt() < 0.05
        with pytest.raises(UserError, match=f"{path.name}: [^\n]*$"):
            kind.load(path, (*wanted.shape[:-1], wanted.shape[-1] + 2))
    missing = tmp_path / f"missing{kind.suffixes[0]}"
    with pytest.raises(UserError, match=missing.name):
        kind.load(missing)


def test_a_token_stands_for_its_span(config: Any) -> None:
    tokenizer = config.build()
    wanted = spec(tokenizer)
    sizes = axes_of(wanted)
    assert wanted.grid == tuple(-(-size // span) for size, span in zip(sizes, tokenizer.span, strict=True))
    if tokenizer.media.per_second is not None:
        assert tokenizer.spec_for(Extent(duration_s=sizes[0] / tokenizer.media.per_second)) == wanted


def test_media_join_in_time_or_say_that_they_cannot(config: Any) -> None:
    tokenizer = config.build()
    parts = list(realistic(spec(tokenizer).shape, 0))
    if tokenizer.media.per_second is None:
        with pytest.raises(UserError):
            tokenizer.media.join(parts)
    else:
        axis = 0 if parts[0].dim() == 1 else 1
        assert tokenizer.media.join(parts).shape[axis] >= 2 * parts[0].shape[axis]


def test_a_corpus_of_other_media_is_refused_in_one_line(config: Any) -> None:
    tokenizer = config.build()
    sounds = len(spec(tokenizer).shape) == 1
    good, bad = (Corpus(tokenizer.media.per_second), object()) if sounds else (object(), Corpus(22050))
    check_media(good, tokenizer)
    with pytest.raises(UserError, match=r"^data gives [^\n]*the tokenizer takes [^\n]*$"):
        check_media(bad, tokenizer)


def test_media_have_one_size_or_any_that_tokens_fill(config: Any) -> None:
    tokenizer = config.build()
    wanted = spec(tokenizer)
    if len(wanted.shape) == 1:
        with pytest.raises(UserError, match="no height and width"):
            tokenizer.spec_for(Extent(duration_s=DURATION_S, size=(16, 16)))
        return
    assert tokenizer.fixed == tokenizer.spec_for() == tokenizer.spec_for(Extent(size=wanted.shape[-2:]))
    _, rows, columns = tokenizer.span
    height, width = wanted.shape[-2] + 2 * rows, wanted.shape[-1] + columns * (2 if columns % 2 else 1)
    own = "vary" in type(config).model_fields  # else its raw tokens have it
    key = "tokenizer.vary" if own else "tokenizer.media.vary"
    with pytest.raises(UserError, match=rf"not {height}×{width}: leave the size out, or train with {re.escape(key)}$"):
        tokenizer.spec_for(Extent(size=(height, width)))
    vary = {"vary": True} if own else {"media": {"vary": True}}
    tokenizer = config.model_copy(update=vary).build()
    assert tokenizer.fixed is None
    assert tokenizer.spec_for() == wanted
    other = tokenizer.spec_for(Extent(size=(height, width)))
    assert other.shape == (*wanted.shape[:-2], height, width)
    assert other.grid == (wanted.grid[0], height // rows, width // columns)
    media = realistic(other.shape, 0)
    assert tokenizer.spec_of(other.shape) == other
    tokens = tokenizer.encode(media)
    assert tokens.shape == (2, other.num_tokens, tokenizer.token_dim)
    assert tokenizer.decode(tokens, other).shape == media.shape
    for wrong in ((height + 1, width), (height, 0), (-height, width)):
        with pytest.raises(UserError, match=r"^a size of [^\n]* does not divide [^\n]*$"):
            tokenizer.spec_for(Extent(size=wrong))
        with pytest.raises(UserError, match="multiples of"):
            tokenizer.spec_of((*wanted.shape[:-2], *wrong))


def test_what_is_kept_stays_when_media_are_blended(config: Any) -> None:
    tokenizer = config.build()
    original, new = realistic(spec(tokenizer).shape, 0)
    axes = original.shape if original.dim() == 1 else original.shape[1:]
    kept = torch.ones(axes, dtype=torch.bool)
    kept[len(kept) // 4 : len(kept) // 2] = False
    blended = tokenizer.media.blend(original, new, kept)
    assert torch.equal(blended[..., kept], original[..., kept])
    assert (blended[..., ~kept] != original[..., ~kept]).float().mean() > 0.9


def test_lengths_that_make_no_sense_are_refused_in_one_line(config: Any) -> None:
    tokenizer = config.build()
    for duration_s in (0.0, -1.0, 1e9, float("nan"), float("inf")):
        with pytest.raises(UserError) as error:
            tokenizer.spec_for(Extent(duration_s=duration_s))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        tokenizer.spec_of((1, 2, 3, 4, 5))
