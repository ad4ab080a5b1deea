"""`--trainer.max_epochs 5`: those of Lightning's flags that a run leaves open, with their ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from peft_core.jobs.cli.options import Choice
from peft_core.values import Count, NotNegative, Range, Whole

Precision = Literal[
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64",
    "transformer-engine", "transformer-engine-float16",
]  # fmt: skip
Part = Annotated[float, Range(above=0, most=1)]


def trainer(
    *,
    max_epochs: Annotated[int, Range(-1)] | None = None,
    max_steps: Annotated[int, Range(-1)] = -1,
    min_epochs: Count | None = None,
    min_steps: Count | None = None,
    max_time: str | None = None,
    accelerator: str = "auto",
    devices: int | list[Whole] | str = 1,
    num_nodes: Count = 1,
    strategy: str = "auto",
    precision: Precision | None = None,
    accumulate_grad_batches: Count = 1,
    gradient_clip_val: NotNegative | None = None,
    gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    limit_train_batches: Count | Part | None = None,
    limit_val_batches: Whole | Part | None = None,
    deterministic: bool | Literal["warn"] | None = None,
    benchmark: bool | None = None,
    detect_anomaly: bool = False,
    sync_batchnorm: bool = False,
) -> None:
    """Lightning's flags.

    Args:
        max_epochs: Passes over the training data; the recipe's, where none is given.
        max_steps: Optimiser steps, after which training ends even within an epoch; -1 sets no limit.
        min_epochs: Passes at least.
        min_steps: Optimiser steps at least.
        max_time: Training ends after so long, DD:HH:MM:SS.
        accelerator: auto, cpu, gpu, mps …
        devices: How many, a list of their numbers, or auto for all.
        num_nodes: Machines.
        strategy: auto, ddp, fsdp …
        precision: bf16-mixed or 16-mixed compute in half precision where that is safe.
        accumulate_grad_batches: Batches whose gradients are added up to one step.
        gradient_clip_val: Longest gradient.
        gradient_clip_algorithm: By the gradient's norm, or value by value.
        limit_train_batches: So many batches an epoch, or such a share of them.
        limit_val_batches: So many batches of what is scored within training, or such a share.
        deterministic: Only operations that give the same bits each time.
        benchmark: Let cuDNN try out which convolution is fastest.
        detect_anomaly: Stop at the operation that first gives a NaN; slow.
        sync_batchnorm: Common statistics over all devices.
    """


class TrainerFlags(Choice):
    """`--trainer.max_epochs 5`: see `trainer`."""

    named, complete, brief = False, False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return trainer
