from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from support import SHARED

from djepa_mm.media.clips import Clips
from djepa_mm.tokenizers.video import ClipPatches, ClipPatchesConfig, ClipVAE, ClipVAEConfig
from djepa_mm.types import Extent, UserError

pytest.importorskip("av")

CLIPS = SHARED / "data" / "video" / "clips"
MEAN, STD = [0.1, 0.2, -0.3, 0.4], [1.0, 2.0, 3.0, 4.0]  # of latents


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        patch_size=2,
        scaling_factor=0.5,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        downsample_type=("conv",) * 2,
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        decoder_inject_noise=(True,) * 3,
        timestep_conditioning=True,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
    )
    vae.latents_mean[:], vae.latents_std[:] = torch.tensor(MEAN), torch.tensor(STD)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:  # of the noise that the decoder draws
                parameter.fill_(0.1)
    return vae


def cog() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def wan() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1, latents_mean=MEAN, latents_std=STD
    )


def still() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        **blocks, block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25
    )


# The VAE, mean and deviation of its latents, frames of a clip, and the grid of 16 × 32 pixels
VAES: dict[str, tuple[Callable[[], Any], Any, Any, int, tuple[int, int, int]]] = {
    "ltx": (ltx, MEAN, [s / 0.5 for s in STD], 9, (3, 2, 4)),
    "cog": (cog, [0.0], [1 / 0.7], 9, (3, 2, 4)),
    "wan": (wan, MEAN, STD, 9, (3, 2, 4)),
    "still": (still, [0.25], [2.0], 18, (18, 8, 16)),  # more frames than go through it at once
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in VAES}
    for name, folder in folders.items():
        VAES[name][0]().save_pretrained(folder)
    return folders


def patches(**options: Any) -> ClipPatches:
    given = {"patch": [2, 4, 4], "frames": 8, "size": [16, 32], "frame_rate": 10.0, **options}
    return ClipPatchesConfig(kind="clip-patches", **given).build()


def vae(folder: Path | str, **options: Any) -> ClipVAE:
    given = {"frames": 9, "size": [16, 32], "frame_rate": 10.0, **options}
    return ClipVAEConfig(kind="clip-vae", model=str(folder), **given).build()


def clips(frames: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, frames, 16, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- patches


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_blocks_of_the_grid_and_come_back_exactly(channels: int) -> None:
    media = clips(channels=channels)
    tokenizer = patches(channels=channels)
    tokens = tokenizer.encode(media)
    assert tokenizer.spec.grid == (4, 4, 8)
    block = media[1, :, 2:4, 8:12, 12:16]  # place (1, 2, 3)
    assert torch.equal(tokens[1, 1 * 32 + 2 * 8 + 3], block.flatten())
    assert tokenizer.spec.positions()[1 * 32 + 2 * 8 + 3].tolist() == [1, 2, 3]
    tokenizer.fit(media)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(media), tokenizer.spec), media, atol=1e-5, rtol=0)


def test_patches_keep_distances_between_pixels() -> None:
    corpus = clips()
    corpus[..., ::4, ::4] = -1  # pixels that never change
    tokenizer = patches()
    tokenizer.fit(corpus)
    tokens = tokenizer.encode(corpus)
    torch.testing.assert_close((tokens[0] - tokens[1]).norm() / (corpus[0] - corpus[1]).norm(), 1 / tokenizer.unit.std)
    assert tokens.mean((0, 1)).abs().max() < 1e-5


def test_a_real_clip_comes_back_from_its_patches() -> None:
    if not CLIPS.is_dir():
        pytest.skip("the real clips are not on this machine")
    path = sorted(CLIPS.glob("city_bikes/*.mp4"))[0]
    tokenizer = patches(patch=[2, 8, 8], frames=32, size=[128, 128], frame_rate=25.0)
    clip = tokenizer.media.load(path, tokenizer.spec.shape)
    tokenizer.fit([clip])
    back = tokenizer.decode(tokenizer.encode(clip[None]), tokenizer.spec)[0]
    torch.testing.assert_close(back, clip, atol=1e-5, rtol=0)


# --- VAEs


@pytest.mark.parametrize("name", VAES)
def test_latents_are_normalized_as_the_vae_says(name: str, folders: dict[str, Path]) -> None:
    """Mean and deviation are those that the VAE came with, and come out again before it decodes."""
    _, mean, std, frames, grid = VAES[name]
    tokenizer, media = vae(folders[name], frames=frames), clips(frames)
    tokens = tokenizer.encode(media)
    assert tokenizer.spec.grid == grid
    assert tokens.shape == (2, tokenizer.spec.num_tokens, 4)
    network = tokenizer.vae
    with torch.no_grad():
        if name == "still":
            latents = torch.stack([network.encode(frame).latent_dist.mode() for frame in media.unbind(2)], dim=2)
        else:
            latents = network.encode(media).latent_dist.mode()  # (B, K, t, h, w)
    mean, std = (torch.tensor(v).expand(4).reshape(1, -1, 1, 1, 1) for v in (mean, std))
    torch.testing.assert_close(tokens, ((latents - mean) / std).flatten(2).mT, atol=1e-4, rtol=1e-4)
    decoded = tokenizer.decode(tokens, tokenizer.spec)
    assert decoded.shape == media.shape
    torch.rand(1)
    assert torch.equal(decoded, tokenizer.decode(tokens, tokenizer.spec))  # whatever noise the decoder draws
    if name in ("cog", "wan"):
        with torch.no_grad():
            torch.testing.assert_close(decoded, network.decode(latents).sample.clamp(-1, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VAES)
def test_every_frame_comes_back_of_every_length_that_fits(name: str, folders: dict[str, Path]) -> None:
    fitting = {"ltx": (1, 5, 9, 13), "wan": (1, 5, 9, 13), "cog": (1, 8, 9, 16, 17), "still": (1, 2, 3)}
    for frames in fitting[name]:
        tokenizer = vae(folders[name], frames=frames, size=[16, 16])
        media = torch.zeros(1, 3, frames, 16, 16)
        tokens = tokenizer.encode(media)
        assert tokens.shape[1] == tokenizer.spec.num_tokens, frames
        assert tokenizer.decode(tokens, tokenizer.spec).shape == media.shape, frames


def test_the_seed_outside_is_left_alone(folders: dict[str, Path]) -> None:
    tokenizer = vae(folders["ltx"])
    tokens = tokenizer.encode(clips(9))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tokenizer.decode(tokens, tokenizer.spec)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("ltx", 16, r"16 frames do not fit AutoencoderKLLTXVideo, which takes 1 \+ 4k; .* 13 and 17$"),
        ("wan", 32, r"32 frames do not fit AutoencoderKLWan, which takes 1 \+ 4k; .* 29 and 33$"),
        ("cog", 13, r"13 frames do not fit AutoencoderKLCogVideoX, which takes 8k or 1 \+ 8k; .* 9 and 16$"),
    ],
)
def test_frame_counts_that_do_not_fit_are_refused_with_the_next_that_do(
    name: str, frames: int, message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        vae(folders[name], frames=frames)
    with pytest.raises(UserError, match=message):  # also where the configuration is read late
        vae(folders[name], frames=frames, channels=4, stride=[4, 8, 8]).encode(clips(frames))


def test_latent_patches_hold_the_same_latents(folders: dict[str, Path]) -> None:
    one, eight = (vae(folders["cog"], frames=16, patch=patch) for patch in ([1, 1, 1], [2, 2, 2]))
    small, large = one.encode(clips(16)), eight.encode(clips(16))
    assert large.shape == (2, 2 * 1 * 2, 4 * 8)
    assert eight.span == (8, 16, 16)
    torch.testing.assert_close(eight.decode(large, eight.spec), one.decode(small, one.spec))


def test_given_sizes_spare_the_reading_and_are_checked_at_the_first_clip(folders: dict[str, Path]) -> None:
    assert vae("not/downloaded/yet", channels=4, stride=[4, 8, 8]).spec.grid == (3, 2, 4)
    with pytest.raises(UserError, match=r"has 4 channels and stride \[4, 8, 8\], but .* say 3 and \[4, 8, 8\]"):
        vae(folders["wan"], channels=3, stride=[4, 8, 8]).encode(clips(9))


def test_scale_and_shift_of_the_recipe_win(folders: dict[str, Path]) -> None:
    own, given = vae(folders["wan"]), vae(folders["wan"], scale=2.0, shift=0.5)
    mean, std = (torch.tensor(v) for v in (MEAN, STD))
    latents = own.encode(clips(9)) * std + mean
    torch.testing.assert_close(given.encode(clips(9)), (latents - 0.5) * 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [None, "{", '{"_class_name": "UNet2DModel"}', '{"_class_name": "AutoencoderKLWan"}'])
def test_a_folder_without_a_vae_is_one_line(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"^tokenizer.model: [^\n]*$"):  # the last one has no weights
        vae(tmp_path).encode(clips(9))


def test_broken_weights_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["wan"].iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match=r"^tokenizer.model: [^\n]*$"):
        vae(tmp_path).encode(clips(9))


def test_moments_of_another_length_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["wan"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latents_mean": [0.0] * 3}))
    with pytest.raises(UserError, match="latents_mean of the VAE has 3 values for 4 channels"):
        vae(tmp_path).encode(clips(9))


# --- sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": [18, 32]}, r"18×32 pixels do not divide into tokens of 4×4"),
        ({"size": [15, 32], "patch": [2, 1, 1]}, r"15×32 pixels are odd"),
        ({"frames": 7}, r"7 frames are 7 frames, which do not divide into tokens of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        patches(**options)


def test_latents_in_time_that_do_not_divide_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"9 frames are 3 latents in time, which do not divide into tokens of 2"):
        vae(folders["wan"], patch=[2, 1, 1])


def test_clips_may_vary_in_length_and_size() -> None:
    config = ClipPatchesConfig(
        kind="clip-patches", patch=(2, 4, 4), frames=8, size=(16, 32), vary=True, frame_rate=10.0
    )
    tokenizer = config.build()
    for shape in ((3, 2, 4, 8), (3, 12, 20, 32)):
        clip = torch.rand(shape)
        spec = tokenizer.spec_of(shape)
        assert spec.shape == shape
        assert spec.num_tokens == shape[1] * shape[2] * shape[3] // 32
        tokens = tokenizer.encode(clip[None])
        assert tokens.shape == (1, spec.num_tokens, 96)
        assert torch.equal(tokenizer.decode(tokens, spec)[0], clip)
    assert tokenizer.spec_for().shape == (3, 8, 16, 32)
    assert tokenizer.spec_for(Extent(duration_s=1.25)).shape == (3, 12, 16, 32)
    assert tokenizer.spec_for(Extent(duration_s=1.25, size=(8, 12))).shape == (3, 12, 8, 12)
    assert tokenizer.spec_for(Extent(size=(8, 12))).grid == (4, 2, 3)
    assert tokenizer.fixed is None
    with pytest.raises(UserError, match=r"multiples of \[2, 4, 4\].*data\.multiple_of"):
        tokenizer.spec_of((3, 3, 16, 32))


@pytest.mark.parametrize("name", VAES)
def test_clips_of_a_vae_may_vary_in_size(name: str, folders: dict[str, Path]) -> None:
    frames, media = VAES[name][3], clips(VAES[name][3])
    varied = vae(folders[name], frames=frames, size=[32, 32], vary=True)
    spec = varied.spec_of(tuple(media.shape[1:]))
    fixed = vae(folders[name], frames=frames)
    assert spec == fixed.spec
    tokens = varied.encode(media)
    torch.testing.assert_close(tokens, fixed.encode(media))
    assert varied.decode(tokens, spec).shape == media.shape
    with pytest.raises(UserError, match=f"3 channels and {frames} frames whose height and width are multiples of"):
        varied.spec_of((3, frames + 8, 16, 32))


def test_odd_sizes_are_refused_to_generate() -> None:
    tokenizer = patches(patch=[2, 1, 1], vary=True)
    assert tokenizer.spec_of((3, 8, 15, 32)).grid == (4, 15, 32)
    with pytest.raises(UserError, match=r"a size of 15×32 pixels is odd"):
        tokenizer.spec_for(Extent(size=(15, 32)))


def test_a_clip_has_one_length() -> None:
    tokenizer = patches()
    for extent in (Extent(duration_s=0.8), Extent(num_tokens=4 * 4 * 8)):
        assert tokenizer.spec_for(extent) == tokenizer.spec
    assert isinstance(tokenizer.media, Clips)
    assert tokenizer.media.per_second == 10
    with pytest.raises(UserError, match=r"0\.8 s \(8 frames, 10 a second\), not 2\.0 s"):
        tokenizer.spec_for(Extent(duration_s=2.0))
