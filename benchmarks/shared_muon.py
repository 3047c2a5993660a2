"""A step of Muon whose matrices are dealt out among the processes, beside one that each process does whole.

    torchrun --standalone --nproc-per-node 2 benchmarks/shared_muon.py [RECIPE] [--repeats 20]

The matrices of the recipe's blocks, with gradients of noise, on the CPU or each process' GPU. In turn, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.distributed as dist

from djepa_mm.ranks import joined, local_device
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.optimizers import SharedMuon, build_optimizers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="shapes")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, {"optim.optimizer": "muon"})
    with joined() as ranks:
        device = local_device()
        model = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build()).to(device)
        shared = build_optimizers(model.online, recipe.optim)[-1]
        assert isinstance(shared, SharedMuon)
        matrices = [p for group in shared.param_groups for p in group["params"]]
        whole = torch.optim.Muon(matrices, lr=recipe.optim.lr, adjust_lr_fn="match_rms_adamw")
        seconds: dict[str, list[float]] = {"whole": [], "shared": []}
        for n in range(args.repeats + 2):
            torch.manual_seed(n)  # the same gradients in every process
            for matrix in matrices:
                matrix.grad = torch.randn_like(matrix)
            for name, optimizer in (("whole", whole), ("shared", shared)):
                if ranks.world > 1:
                    dist.barrier()
                began = time.monotonic()
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if n > 1:  # after the first two, which make the momentum
                    seconds[name].append(time.monotonic() - began)
        if ranks.first:
            took = {name: statistics.median(times) for name, times in seconds.items()}
            count = sum(matrix.numel() for matrix in matrices)
            print(f"{len(matrices)} matrices, {count:,} weights, {ranks.world} processes on {device.type}")
            for name, times in seconds.items():
                print(f"{name:6} {took[name] * 1000:.1f} ms ({min(times) * 1000:.1f} to {max(times) * 1000:.1f})")
            print(f"shared takes {took['shared'] / took['whole']:.2f} of whole")


if __name__ == "__main__":
    main()
