"""Tokens that training draws anew at each reading, a variational autoencoder's: by item and epoch, whoever reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torchvision.utils import save_image

from djepa_mm.data.batches import Encoded
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.data.reading import Memory
from djepa_mm.recipe.load import load_recipe

ITEMS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16×16 pixels, and a VAE whose tokens are 8×8 of three channels."""
    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(folder / "vae")
    (folder / "pictures").mkdir()
    for number in range(ITEMS):
        save_image(torch.rand(3, 16, 16), folder / "pictures" / f"{number}.png")
    return folder


def corpus(folder: Path, **batch: object) -> Corpus:
    overrides = {
        "data": {"source": "image-folder", "root": str(folder / "pictures"), "size": [16, 16]},
        "tokenizer": {"kind": "kl-vae", "model": str(folder / "vae"), "size": [16, 16], "sample": True},
        "condition": {"kind": "none"},
        "sample.guidance": 1.0,
        "batch": {"size": 4, **batch},
    }
    recipe = load_recipe("pictures", overrides)
    kind = recipe.condition.build()
    kind.bind(source := recipe.data.build())
    return Corpus(source, recipe.tokenizer.build(), kind, recipe.batch)


def epochs(corpus: Corpus, count: int) -> list[dict[int, torch.Tensor]]:
    """Tokens by index, of whole epochs."""
    batches = corpus.batches(Cursor())
    return [
        {
            index: row
            for indices in corpus.plan(epoch)
            for index, row in zip(indices, next(batches)[0][0].batch.tokens, strict=True)
        }
        for epoch in range(count)
    ]


def test_they_follow_the_item_and_the_epoch_alone(folder: Path) -> None:
    first, second = epochs(corpus(folder), 2)
    others = epochs(corpus(folder, size=3, workers=1), 2)
    for index in range(ITEMS):
        torch.testing.assert_close(first[index], others[0][index])
        torch.testing.assert_close(second[index], others[1][index])
        assert (first[index] - second[index]).abs().mean() > 0.1


def test_they_are_drawn_from_the_posterior(folder: Path) -> None:
    drawn = corpus(folder)
    media = torch.stack([drawn.source.read(index).media for index in range(ITEMS)])
    mean, deviation = drawn.tokenizer.posterior(media)  # type: ignore[attr-defined]
    read = epochs(drawn, 20)
    z = torch.stack([(epoch[index] - mean[index]) / deviation[index] for epoch in read for index in range(ITEMS)])
    assert z.mean().abs() < 0.02  # of 46,080 normal numbers, 0.0047 and 0.0033 are one standard error
    assert (z.std() - 1).abs() < 0.02


def test_a_cache_keeps_what_they_are_drawn_from(folder: Path) -> None:
    drawn, cached = corpus(folder), corpus(folder, cache=True)
    cached.fill_cache()
    assert isinstance(cached.reading, Memory)
    for one in (one for item in cached.reading.items.values() for one in item):
        assert isinstance(one, Encoded)
        assert one.deviation is not None
        for tensor in (one.tokens, one.deviation):  # which takes no other with it where it is sent
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    for ours, theirs in zip(epochs(drawn, 2), epochs(cached, 2), strict=True):
        for index in range(ITEMS):
            torch.testing.assert_close(ours[index], theirs[index])
