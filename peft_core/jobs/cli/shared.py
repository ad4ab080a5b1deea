"""Options that the same commands of all programs have: taken by `peft_data.options.takes`, as `**common`."""

from __future__ import annotations

from typing import Annotated

from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.values import Count, NotNegative, Positive, Range, Seed, Share, Whole

Port = Annotated[int, Range(1024, 65535)]

RUN, TRAINING, MACHINE = "what is trained on what", "training", "the run and its machine"
"""Headings of every `fit`'s help."""


def training(
    *,
    recipe: str | None = None,
    out: str | None = None,
    seed: Seed = 0,
    batch_size: Count = 1,
    lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.0,
    final_lr: Share = 0.0,
    save_every: NotNegative = 60.0,
    overwrite: bool = False,
    trainer: TrainerFlags = None,  # type: ignore[assignment]
) -> None:
    """Options of every `fit`.

    Args:
        recipe: A name (`list recipes`) or a YAML's path.
        out: The run folder; by default in runs/, called as what the run is made of.
        seed: Of all chance in training.
        batch_size: Pictures a step, over all devices.
        lr: Highest learning rate.
        weight_decay: Not for biases and other 1-D tensors.
        final_lr: Where the cosine ends, as a share of lr.
        save_every: Seconds between checkpoints within an epoch.
        overwrite: Replace another run in the same folder.
        trainer: Lightning's own flags, e.g. --trainer.max_epochs 5.
    """


def sweeping(
    *,
    out: str,
    data: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[Seed] | None = None,
    grid: list[str] | None = None,
    set: list[str] | None = None,
    sweep: str | None = None,
    workers: Whole = 0,
    threads: Whole = 0,
    overwrite: bool = False,
) -> None:
    """Options of every `sweep`.

    Args:
        out: The sweep's folder.
        data: Data sets or folders.
        methods: Methods and presets (`list methods`).
        seeds: By default 0.
        grid: OPTION=VALUE,VALUE of fit, a run for each; METHOD:OPTION=… for one method.
        set: OPTION=VALUE of fit for all runs; METHOD:OPTION=VALUE for one method.
        sweep: A sweep's name (`list sweeps`) or YAML; options given besides go over it.
        workers: Processes; by default one a GPU, or one a processor.
        threads: Of each process; by default the processors are shared out.
        overwrite: Change the plan of a sweep; runs that both plans have are kept.
    """


def serving(*, runs: str = "runs", port: Port = 7860, open: bool = False) -> None:
    """Options of every `app`.

    Args:
        runs: The folder of run folders that are shown and written to.
        port: On 127.0.0.1.
        open: Open the browser.
    """
