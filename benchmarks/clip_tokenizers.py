"""Clip tokenizers of one's own beside diffusers' autoencoders, trained for the same time on the same clips.

    python benchmarks/clip_tokenizers.py CLIPS --out FOLDER [--minutes 8] [--only ours]

CLIPS: a folder with `clips/` in class folders and `clips.jsonl`, which says each file's source and first frame. The
last fifth of each film is held out, all crops of a moment together. 17 frames of 128×128, at compressions (3·T·H·W over
tokens · channels) of about 24 and 96. Ours by the recipe clips-tokens; diffusers' classes, which have as many latent
channels as that compression leaves, by the same losses and AdamW. PSNR and SSIM are means over the held-out clips.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from djepa_mm.evaluate.distance import psnr_db, ssim
from djepa_mm.evaluate.visual import spread
from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
from djepa_mm.tokenizers.trained import TrainedConfig
from djepa_mm.training.tokenizer import train_tokenizer
from djepa_mm.types import BrokenItem

Trained = tuple[Callable[[Tensor], Tensor], float, int, int]

FRAMES, SIDE = 17, 128
COMPRESSIONS = (24, 96)
KL, RATE = 1e-3, 5e-4
DEVIATION = 0.5  # about that of the pixels; ours are brought to unit variance


def split(folder: Path, out: Path) -> None:
    """Links to the clips in out/train and out/held-out."""
    films = defaultdict(list)
    for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        films[row["source"]].append(row)
    for rows in films.values():
        moments = sorted({row["first_frame"] for row in rows})
        last = moments[len(moments) - round(len(moments) / 5) :]
        for row in rows:
            target = out / ("held-out" if row["first_frame"] in last else "train") / row["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to((folder / "clips" / row["file"]).resolve())


def ours(compression: int, out: Path, minutes: float) -> Trained:
    """-> what takes clips there and back, its compression, its parameters and the steps of its training."""
    run = out / f"ours-{compression}"
    overrides = {"data.root": str(out / "train"), "optim.minutes": minutes, "model.channels": 2592 // compression}
    if not (run / "checkpoints").exists():
        train_tokenizer(load_tokenizer_recipe("clips-tokens", overrides), run, console=Console())
    tokenizer = TrainedConfig(kind="trained", path=str(run)).build()
    spec = tokenizer.spec_for()
    step = int(tokenizer.checkpoint.name.split("-")[1])
    exact = 3 * FRAMES * SIDE**2 / (spec.num_tokens * tokenizer.token_dim)
    return lambda clips: tokenizer.decode(tokenizer.encode(clips), spec), exact, count(tokenizer.network), step


def cogvideox(channels: int) -> nn.Module:
    """Causal in time, 4 frames and 8×8 pixels a latent."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(16, 32, 32, 64),
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=SIDE,
        sample_width=SIDE,
    )


class ByFrame(nn.Module):
    """AutoencoderKL, 8×8 pixels a latent, frame by frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 32, 64),
            latent_channels=channels,
            layers_per_block=1,
            norm_num_groups=8,
        )

    def forward(self, clips: Tensor, draw: bool) -> tuple[Tensor, Any]:
        frames = clips.transpose(1, 2).flatten(0, 1)
        posterior = self.vae.encode(frames).latent_dist
        back = self.vae.decode(posterior.sample() if draw else posterior.mode()).sample
        return back.unflatten(0, (len(clips), -1)).transpose(1, 2), posterior


class Whole(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clips: Tensor, draw: bool) -> tuple[Tensor, Any]:
        posterior = self.vae.encode(clips).latent_dist
        return self.vae.decode(posterior.sample() if draw else posterior.mode()).sample, posterior


def theirs(name: str, compression: int, out: Path, minutes: float) -> Trained:
    torch.manual_seed(0)
    if name == "AutoencoderKL":
        channels = 192 // compression
        network: nn.Module = ByFrame(channels)
        numbers = FRAMES * (SIDE // 8) ** 2 * channels
    else:
        channels = 648 // compression
        network = Whole(cogvideox(channels))
        numbers = (1 + (FRAMES - 1) // 4) * (SIDE // 8) ** 2 * channels
    source = load_tokenizer_recipe("clips-tokens", {"data.root": str(out / "train")}).data.build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.02)
    began, step = time.monotonic(), 0
    generator = torch.Generator().manual_seed(0)
    while (done := (time.monotonic() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * max(0.02, (1 + math.cos(math.pi * done)) / 2)
        index = int(torch.randint(len(source), (), generator=generator))
        try:
            clip = source.read(index).media[None]  # type: ignore[union-attr]
        except BrokenItem:  # shorter than that
            continue
        back, posterior = network(clip, True)
        error = back - clip
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.square().mean() / DEVIATION**2 + error.abs().mean() / DEVIATION + KL * divergence
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()
        step += 1
    network.eval()
    return lambda clips: network(clips, False)[0], 3 * FRAMES * SIDE**2 / numbers, count(network), step


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def held_out(out: Path) -> Iterator[Tensor]:
    overrides = {"data.root": str(out / "held-out"), "data.window": "middle"}
    source = load_tokenizer_recipe("clips-tokens", overrides).data.build()
    for index in range(len(source)):  # type: ignore[arg-type]
        with suppress(BrokenItem):
            yield source.read(index).media  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--count", type=int, help="Held-out clips, spread over all of them; all if not given.")
    parser.add_argument("--only", choices=("ours", "AutoencoderKL", "AutoencoderKLCogVideoX"))
    arguments = parser.parse_args()
    split(arguments.clips, arguments.out)
    table = Table("tokenizer", "compression", "parameters, M", "steps", "PSNR, dB", "SSIM", "s a clip")
    clips = list(held_out(arguments.out))
    if arguments.count is not None:
        clips = [clips[n] for n in spread(arguments.count, len(clips))]
    for name in ("ours", "AutoencoderKL", "AutoencoderKLCogVideoX"):
        if arguments.only not in (None, name):
            continue
        for compression in COMPRESSIONS:
            if name == "ours":
                there_and_back, exact, weights, steps = ours(compression, arguments.out, arguments.minutes)
            else:
                there_and_back, exact, weights, steps = theirs(name, compression, arguments.out, arguments.minutes)
            began, scores = time.monotonic(), []
            for clip in clips:
                with torch.no_grad():
                    back = there_and_back(clip[None])[0].clamp(-1, 1)
                scores.append((psnr_db(clip, back), ssim(clip, back)))
            means = [statistics.fmean(values) for values in zip(*scores, strict=True)]
            seconds = (time.monotonic() - began) / len(clips)
            row = (
                f"{exact:.1f}",
                f"{weights / 1e6:.1f}",
                f"{steps:,}",
                f"{means[0]:.2f}",
                f"{means[1]:.4f}",
                f"{seconds:.2f}",
            )
            table.add_row(name, *row)
            print(name, *row, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
