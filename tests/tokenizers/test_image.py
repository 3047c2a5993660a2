from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from pydantic import ValidationError
from support import realistic

from djepa_mm.tokenizers.image import KLVAE, KLVAEConfig, PatchesConfig, in_tiles
from djepa_mm.types import Extent, UserError

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, AutoencoderKL]:
    torch.manual_seed(0)
    network = AutoencoderKL(
        **BLOCKS,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    folder = tmp_path_factory.mktemp("vae")
    network.save_pretrained(folder)
    return str(folder), network


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def tokenizer(folder: str, **options: Any) -> KLVAE:
    return KLVAEConfig(kind="kl-vae", model=folder, **{"size": [16, 32], **options}).build()


def test_patches_are_rows_of_the_grid_and_come_back_exactly(pictures: torch.Tensor) -> None:
    patches = PatchesConfig(kind="patches", patch=4, size=[16, 32]).build()
    tokens = patches.encode(pictures)
    assert torch.equal(tokens[1, 8 + 2], pictures[1, :, 4:8, 8:12].flatten())  # row 1, column 2 of 4 × 8
    patches.fit(pictures)
    torch.testing.assert_close(patches.decode(patches.encode(pictures), patches.spec), pictures)


def test_patches_keep_distances_between_pixels(pictures: torch.Tensor) -> None:
    """One scale for all pixels, also where one of them never changes."""
    corpus = pictures.clone()
    corpus[..., ::4, ::4] = -1
    patches = PatchesConfig(kind="patches", patch=4, size=[16, 32]).build()
    patches.fit(corpus)
    tokens = patches.encode(corpus)
    ratio = (tokens[0] - tokens[1]).norm() / (corpus[0] - corpus[1]).norm()
    torch.testing.assert_close(ratio, 1 / patches.unit.std)
    moved = corpus.clone()
    moved[:, :, 0, 0] += 0.5  # the pixel that never changes
    torch.testing.assert_close((patches.encode(moved) - tokens).abs().max(), 0.5 / patches.unit.std)


def test_decoded_pictures_stay_within_range() -> None:
    patches = PatchesConfig(kind="patches", patch=2, channels=1, size=[4, 4]).build()
    assert patches.decode(torch.full((1, 4, 4), 9.0), patches.spec).max() == 1


def test_a_flat_corpus_gives_finite_tokens() -> None:
    patches = PatchesConfig(kind="patches", patch=2, channels=1, size=[4, 4]).build()
    patches.fit([torch.ones(1, 4, 4)] * 2)
    assert torch.equal(patches.encode(torch.ones(1, 1, 4, 4)), torch.zeros(1, 4, 4))


def test_sizes_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"30×32 pixels .* tokens of 4×4"):
        PatchesConfig(kind="patches", patch=4, size=[30, 32]).build()
    with pytest.raises(UserError, match=r"\(3, 16, 32\).*\(1, 8, 8\)"):
        PatchesConfig(kind="patches", patch=4, size=[16, 32]).build().spec_of((1, 8, 8))
    with pytest.raises(ValidationError):
        PatchesConfig(kind="patches", patch=4, size=["16", 32])


def test_pictures_of_other_sizes_come_back_exactly() -> None:
    patches = PatchesConfig(kind="patches", patch=4, size=[16, 32], vary=True).build()
    patches.fit(torch.rand(3, 8 * n, 12, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3))
    assert patches.spec_for().shape == (3, 16, 32)
    assert patches.spec_for(Extent(size=(8, 12), num_tokens=6)) == patches.spec_of((3, 8, 12))
    picture = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spec = patches.spec_of((3, 8, 12))
    assert spec.grid == (1, 2, 3)
    tokens = patches.encode(picture[None])
    raw = tokens * patches.unit.std + patches.unit.mean
    torch.testing.assert_close(raw[0, 3 + 1], picture[:, 4:8, 4:8].flatten())  # row 1, column 1 of 2 × 3
    torch.testing.assert_close(patches.decode(tokens, spec)[0], picture)
    with pytest.raises(UserError, match=r"8×12 pixels has 6 tokens, not 8; leave the length out"):
        patches.spec_for(Extent(size=(8, 12), num_tokens=8))
    with pytest.raises(UserError, match=r"multiples of 4, the data has \(3, 8, 10\); data\.multiple_of"):
        patches.spec_of((3, 8, 10))


def test_pictures_of_one_size_are_refused_another() -> None:
    patches = PatchesConfig(kind="patches", patch=4, channels=1, size=[8, 8]).build()
    with pytest.raises(UserError) as error:
        patches.spec_for(Extent(size=(16, 8)))
    assert str(error.value) == (
        "every picture has 8×8 pixels (height × width), not 16×8: leave the size out, or train with tokenizer.vary"
    )


def test_latents_of_other_sizes_are_the_vaes(vae: tuple[str, AutoencoderKL], pictures: torch.Tensor) -> None:
    folder, network = vae
    varied = tokenizer(folder, size=[8, 8], vary=True)
    spec = varied.spec_of((3, 16, 32))
    with torch.no_grad():
        latents = network.encode(pictures).latent_dist.mode()
    tokens = varied.encode(pictures)
    torch.testing.assert_close(tokens, ((latents - 0.25) * 0.5).flatten(2).mT)
    torch.testing.assert_close(varied.decode(tokens, spec), tokenizer(folder).decode(tokens, spec))


def test_latents_are_shifted_and_scaled_as_the_vae_says(vae: tuple[str, AutoencoderKL], pictures: torch.Tensor) -> None:
    folder, network = vae
    with torch.no_grad():
        latents = network.encode(pictures).latent_dist.mode()
        decoded = network.decode(latents).sample.clamp(-1, 1)
    built = tokenizer(folder)
    tokens = built.encode(pictures)
    assert built.spec.grid == (1, 8, 16)
    torch.testing.assert_close(tokens, ((latents - 0.25) * 0.5).flatten(2).mT)
    torch.testing.assert_close(built.decode(tokens, built.spec), decoded)
    given = tokenizer(folder, scale=1 / latents.std().item(), shift=latents.mean().item()).encode(pictures)
    assert given.mean().item() == pytest.approx(0, abs=1e-4)
    assert given.std().item() == pytest.approx(1, abs=1e-3)


def test_latent_patches_hold_the_same_latents(vae: tuple[str, AutoencoderKL], pictures: torch.Tensor) -> None:
    one, two = tokenizer(vae[0]), tokenizer(vae[0], patch=2)
    small, large = one.encode(pictures), two.encode(pictures)
    assert large.shape == (2, 4 * 8, 3 * 4)
    torch.testing.assert_close(large.sort(-1).values.sum(), small.sum())
    torch.testing.assert_close(two.decode(large, two.spec), one.decode(small, one.spec))


def test_large_pictures_go_through_in_tiles(vae: tuple[str, AutoencoderKL], pictures: torch.Tensor) -> None:
    whole, tiled = tokenizer(vae[0]), tokenizer(vae[0], tile=True)
    tokens, tiled_tokens = whole.encode(pictures), tiled.encode(pictures)  # 16 × 32 is two tiles of the VAE's 16
    assert tokens.shape == tiled_tokens.shape
    assert not torch.equal(tokens, tiled_tokens)
    assert tiled.decode(tokens, tiled.spec).shape == pictures.shape


def test_tiles_lie_evenly_and_add_up_to_all_of_it() -> None:
    volume = torch.rand(1, 2, 44, 26, generator=torch.Generator().manual_seed(0))
    seen = []

    def tripled(part: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(part.shape[-2:]))
        return part.repeat_interleave(3, -1).repeat_interleave(3, -2)

    found = in_tiles(tripled, volume, side=16, overlap=4, before=1, behind=3)
    torch.testing.assert_close(found, tripled(volume))
    assert seen[:-1] == [(16, 16)] * 8
    seen.clear()
    found = in_tiles(lambda part: part[..., ::2, ::2], volume, side=8, overlap=2, before=2, behind=1)
    torch.testing.assert_close(found, volume[..., ::2, ::2])


def test_no_seam_is_seen_where_tiles_meet(vae: tuple[str, AutoencoderKL]) -> None:
    """What tiles change is smooth: from one pixel to the next it jumps no more at their edges than elsewhere."""
    size = {"size": [96, 224]}
    whole, tiled = tokenizer(vae[0], **size), tokenizer(vae[0], tile_above=96, **size)
    picture = realistic((3, 96, 224), 0, count=1)
    tokens = whole.encode(picture)
    as_whole = whole.decode(tokens, whole.spec)
    latents = whole._to_volume(tokens, whole.spec.grid) / whole.scale + whole.shift
    beside = in_tiles(tiled._decode, latents, side=56, overlap=0, before=1, behind=2)  # not overlapping, from 112 on

    def jump(decoded: torch.Tensor, edges: list[int]) -> float:
        """Most at any of the edges, in those elsewhere."""
        jumps = (decoded - as_whole).diff(dim=-1).abs().mean((0, 1, 2))  # (223,)
        return float(torch.stack([jumps[edge - 2 : edge + 2].max() for edge in edges]).max() / jumps.median())

    found = tiled.decode(tokens, tiled.spec)
    assert 0 < (found - as_whole).abs().mean() < 0.05
    assert jump(found, [64, 96, 128, 160]) < 1.5  # tiles begin at 0, 64 and 128
    assert jump(beside, [112]) > 5
    torch.testing.assert_close(tiled.encode(picture), tokens, atol=0.2, rtol=0)


def test_tiles_that_make_no_sense(vae: tuple[str, AutoencoderKL]) -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.tile_above 7: give 8 or more, four latents$"):
        tokenizer(vae[0], tile_above=7)
    with pytest.raises(ValidationError, match=r"tokenizer\.tile and tokenizer\.tile_above: give one of the two"):
        tokenizer(vae[0], tile=True, tile_above=64)


def test_encoding_takes_the_mean_and_training_may_draw(vae: tuple[str, AutoencoderKL], pictures: torch.Tensor) -> None:
    plain, drawing = tokenizer(vae[0]), tokenizer(vae[0], sample=True)
    assert (plain.draws, drawing.draws) == (False, True)
    mean, deviation = drawing.posterior(pictures)
    assert torch.equal(drawing.encode(pictures), mean)
    assert torch.equal(plain.encode(pictures), mean)
    with torch.no_grad():
        latents = vae[1].encode(pictures).latent_dist
    torch.testing.assert_close(mean[1, 16 + 2], (latents.mean[1, :, 1, 2] - 0.25) * 0.5)  # row 1, column 2
    torch.testing.assert_close(deviation[1, 16 + 2], latents.std[1, :, 1, 2] * 0.5)


def test_the_configuration_alone_tells_the_token_size(vae: tuple[str, AutoencoderKL], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(vae[0]) / "config.json").read_bytes())
    built = tokenizer(str(tmp_path))
    assert built.token_dim == 3
    with pytest.raises(UserError, match=r"^tokenizer.model: [^\n]*$"):  # and the weights are missed when needed
        built.encode(torch.zeros(1, 3, 16, 32))


def test_a_vae_in_a_subfolder(vae: tuple[str, AutoencoderKL], tmp_path: Path) -> None:
    vae[1].save_pretrained(tmp_path / "vae")
    assert tokenizer(str(tmp_path), subfolder="vae").encode(torch.zeros(1, 3, 16, 32)).shape == (1, 128, 3)


@pytest.mark.parametrize("config", [None, "{", '{"_class_name": "UNet2DModel"}'])
def test_a_folder_without_a_vae_is_one_line(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"^tokenizer.model: [^\n]*$"):
        tokenizer(str(tmp_path))


def test_broken_weights_are_one_line(vae: tuple[str, AutoencoderKL], tmp_path: Path) -> None:
    for path in Path(vae[0]).iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match=r"^tokenizer.model: [^\n]*$"):
        tokenizer(str(tmp_path)).encode(torch.zeros(1, 3, 16, 32))


def test_pickled_weights_need_permission(vae: tuple[str, AutoencoderKL], tmp_path: Path) -> None:
    vae[1].save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match="allow_pickle"):
        tokenizer(str(tmp_path)).encode(torch.zeros(1, 3, 16, 32))
    assert tokenizer(str(tmp_path), allow_pickle=True).encode(torch.zeros(1, 3, 16, 32)).shape == (1, 128, 3)


def test_given_sizes_spare_the_reading_and_are_checked_at_the_first_picture(
    vae: tuple[str, AutoencoderKL], pictures: torch.Tensor
) -> None:
    folder, _ = vae
    assert tokenizer("not/downloaded/yet", channels=3, stride=2).token_dim == 3
    assert tokenizer(folder, channels=3, stride=2).encode(pictures).shape == (2, 8 * 16, 3)
    with pytest.raises(UserError, match=r"has 3 channels and stride 2, but .* say 4 and 2"):
        tokenizer(folder, channels=4, stride=2).encode(pictures)
