"""What a script or a notebook may do while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from djepa_mm.generation.pipeline import Pipeline


class Callback:
    """Override what is of interest; everything is called in the thread that trains."""

    def on_step(self, step: int, progress: float) -> None:
        """After each step. progress: share of the run that is done, in [0, 1]."""

    def on_log(self, row: Mapping[str, float]) -> None:
        """With each line of log.jsonl: step, losses, gradient_norm, lr, seconds; left_out, steps whose loss or gradient
        was not finite; steps_per_s, items_per_s, tokens_per_s; data_wait, the share of the time that data were waited
        for; matrix_share, of the FLOPs a second that products of matrices reach on this machine; memory_mib, the most
        so far."""

    def on_samples(self, files: Sequence[Path]) -> None:
        """When samples were written."""

    def on_checkpoint(self, folder: Path) -> None:
        """When a checkpoint is whole on the disk."""

    def scores(self, step: int, pipeline: Pipeline) -> Mapping[str, float]:
        """Before each checkpoint of a recipe with `feedback.wanted`: how well the averaged weights do by attribute,
        such as {"red": 0.8, "style/sketch": 0.3}. What scores less than the others of its class is wanted more often.
        """
        return {}
