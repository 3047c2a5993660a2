"""What keeping latents is worth: steps of training from them, beside encoding every picture at every step.

    python benchmarks/latents.py [--model tiny] [--size 256] [--batch 2] [--steps 3] [--repeats 5]

The tokenizer is a VAE of KL-16's size with random weights (16 channels at a sixteenth of the picture's sides), sampled
from as the recipe imagenet256-b does; pictures are flipped. One core, in seconds of its own, so that others on the
machine do not count. Each repeat times the same steps both ways, one after the other; the figures are medians, and the
ratio is the median of the repeats' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from rich.table import Table

from djepa_mm.data.corpus import Cursor
from djepa_mm.data.encoding import Keeping, encode_corpus
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import DJEPATask
from djepa_mm.training.loop import Trainer


def vae_of_kl16() -> AutoencoderKL:
    """Of MAR's KL-16: widths 128·(1, 1, 2, 2, 4), two residual blocks, 16 channels; 64 M parameters, for here its
    last level has no attention."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="preset of the model that is trained")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        vae_of_kl16().save_pretrained(folder / "vae")
        rng = np.random.default_rng(0)
        for n in range(2 * args.batch):
            path = folder / "pictures" / f"class{n % 2}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (args.size, args.size, 3), np.uint8)).save(path)
        overrides = {
            "data": {
                "source": "image-folder", "root": str(folder / "pictures"), "size": [args.size] * 2, "flip": True,
            },
            "tokenizer.model": str(folder / "vae"), "tokenizer.size": [args.size] * 2, "condition.classes": 2,
            "model.preset": args.model, "batch.size": args.batch, "batch.workers": 0, "optim.precision": "fp32",
            "run.samples": 2,
        }  # fmt: skip
        recipe = load_recipe("imagenet256-b", overrides)
        began = time.process_time()
        encode_corpus(recipe, folder / "latents", Keeping(at_once=args.batch))
        encoding = (time.process_time() - began) / (2 * args.batch)
        raw = json.loads(recipe.model_dump_json(serialize_as_any=True))
        kept = load_recipe({**raw, "data": {"source": "latents", "root": str(folder / "latents")}})
        ways = {"encoded at every step": recipe, "from latents": kept}
        steps = {}
        for name, one in ways.items():
            task = DJEPATask(one, device=torch.device("cpu"))
            trainer = Trainer(task, folder / name)
            task.online.train()
            steps[name] = trainer, task.batches(Cursor())
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(1 + args.repeats):  # the first one warms up
            for name, (trainer, batches) in steps.items():
                began = time.process_time()
                for _ in range(args.steps):
                    trainer.one_step(batches)
                if repeat:
                    seconds[name].append((time.process_time() - began) / args.steps)
    slow, fast = seconds.values()
    table = Table(
        "way", "a step, median", "least", "most", title=f"{args.model}, {args.batch} pictures of {args.size}²"
    )
    for name, one in seconds.items():
        table.add_row(name, *(f"{value:.3f} s" for value in (statistics.median(one), min(one), max(one))))
    console = Console()
    console.print(table)
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    console.print(f"ratio {ratio:.1f}; encoding took {encoding:.2f} s a picture, both flips, once")


if __name__ == "__main__":
    main()
