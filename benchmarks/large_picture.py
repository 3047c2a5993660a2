"""A picture of 4,096 × 4,096 pixels by a tiny model: positions, random token drop, a training step and a VAE in tiles,
in how much memory?

    python benchmarks/large_picture.py

The VAE has the stride and the blocks of the usual ones (8 pixels a latent, 16 channels), with few channels inside and
random weights; the model takes patches of 2 × 2 latents, so that the picture is 256 × 256 tokens. `--whole` does
without tiles, to compare.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL

from djepa_mm.data.batches import Batcher, Read
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.tokenizers.image import KLVAE

LIMIT_GIB = 8
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def peak_gb() -> float:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@contextmanager
def told(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what:<44}{time.perf_counter() - began:>8.1f} s{peak_gb():>8.2f} GB at most so far", flush=True)


def seam(tokenizer: KLVAE, side: int) -> None:
    """What two tiles a side do to a picture of smooth noise, where they meet and elsewhere."""
    tokenizer.tile_latents = 0
    spec = tokenizer.spec_of((3, side, side))
    noise = torch.nn.functional.interpolate(
        torch.randn(1, 3, side // 16, side // 16), size=(side, side), mode="bicubic"
    )
    tokens = tokenizer.encode(noise.clamp(-1, 1))
    whole = tokenizer.decode(tokens, spec)
    tokenizer.tile_latents = latents = side // tokenizer.stride * 5 // 8
    change = tokenizer.decode(tokens, spec) - whole
    jumps = change.diff(dim=-1).abs().mean((0, 1, 2))
    edges = [side - latents * tokenizer.stride, latents * tokenizer.stride]
    at_edges = max(float(jumps[edge - 2 : edge + 2].max()) for edge in edges)
    print(
        f"tiles of {latents * tokenizer.stride} in {side} pixels, beside none: {change.abs().mean():.4f} of [-1, 1] on "
        f"average; from pixel to pixel {at_edges:.5f} at the tiles' edges, {jumps.median():.5f} elsewhere"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="pixels")
    parser.add_argument("--tile", type=int, default=1024, help="pixels a side of a tile")
    parser.add_argument("--keep", type=int, default=4096, help="batch.item_tokens")
    parser.add_argument("--channels", type=int, default=8, help="of the VAE's first block")
    parser.add_argument("--whole", action="store_true", help="no tiles")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        inside = {"block_out_channels": (options.channels,) * 4, "norm_num_groups": 4, "latent_channels": 16}
        AutoencoderKL(**BLOCKS, **inside).save_pretrained(folder)
        size, tiles = [options.side, options.side], {} if options.whole else {"tile_above": options.tile}
        recipe = load_recipe(
            "digits",
            {
                "tokenizer": {"kind": "kl-vae", "model": folder, "patch": 2, "size": size, "vary": True, **tiles},
                "condition": {"kind": "none", "buffer_tokens": 4},
                "model": {"preset": "tiny", "positions": "rotary", "axes": ["h", "w"]},
                "sample.guidance": 1.0,
            },
        )
        tokenizer, condition = recipe.tokenizer.build(), recipe.condition.build()
        picture = torch.rand(3, *size) * 2 - 1
        print(f"{'torch, diffusers, a picture':<44}{'':>10}{peak_gb():>8.2f} GB at most so far")
        with told("positions"):
            spec = tokenizer.spec_of(tuple(picture.shape))
            count = len(spec.positions())
        with told("encoded, and some tokens of it"):
            batcher = Batcher(tokenizer, condition, torch.device("cpu"), options.keep)
            portion = batcher.portion([Read(named=lambda: "one", place=0, value=None, seed=0, content=picture)])
        assert portion is not None
        with told(f"a training step, {portion.batch.valid.sum()} of {count} tokens"):
            model = build_model(recipe, tokenizer, condition)
            model(portion.batch, torch.Generator().manual_seed(0)).total.backward()
        with told("decoded"):
            decoded = tokenizer.decode(torch.randn(1, count, tokenizer.token_dim), spec)
        assert decoded.shape == (1, *picture.shape)
        del decoded, portion, model
        seam(tokenizer, options.side // 4)
    within = peak_gb() * 1e9 <= LIMIT_GIB * 2**30
    print(f"{'within' if within else 'more than'} {LIMIT_GIB} GiB")
    raise SystemExit(not within)


if __name__ == "__main__":
    main()
