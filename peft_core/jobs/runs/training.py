"""Lightning's Trainer as all three programs use it: quiet, with checkpoints that hold the trainable part only."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.runs.lean import leave_out_compiler, leave_out_metrics
from peft_core.stock import adapter_state

leave_out_compiler()
leave_out_metrics()
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping  # noqa: E402
from lightning.pytorch.plugins.io import TorchCheckpointIO  # noqa: E402
from lightning.pytorch.utilities.exceptions import SIGTERMException  # noqa: E402

__all__ = ["AtomicCheckpoints", "Callback", "EarlyStopping", "LightningModule", "SaveState", "among_devices", "keep_trainables",
           "make_trainer", "planned_steps", "quiet", "read_checkpoint", "seed_everything", "stepped", "train",
           "Trainer"]  # fmt: skip
CHECKPOINT = "last.ckpt"


def make_trainer(flags: dict[str, Any], callbacks: list[Callback], folder: Path | None = None, **more: Any) -> Trainer:
    """A Trainer on one device (`devices` asks for more) without Lightning's own logs, bars and checkpoints.

    Raises:
        PeftError: flags that do not go together, e.g. an accelerator that this machine lacks.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    settings: dict[str, Any] = {"devices": 1} | {
        key: tuple(value) if isinstance(value, list) and key != "devices" else value for key, value in flags.items()
    }
    if any(word in str(settings.get("strategy")) for word in ("spawn", "fork", "notebook")):
        raise PeftError(f"--trainer.strategy {settings['strategy']} loses what its processes find out: use ddp.")
    settings |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings |= {
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "callbacks": callbacks,
        "plugins": [AtomicCheckpoints()],
    }
    try:
        with quiet():
            trainer = Trainer(**(settings | more))
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise PeftError(f"Lightning refuses the --trainer options: {' '.join(str(error).split())}") from error
    most = max(8, os.cpu_count() or 1)
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > most:
        raise PeftError(
            f"--trainer.devices {trainer.num_devices} are as many processes, too many for this processor: {most} at most."
        )
    return trainer


def among_devices(trainer: Trainer, batch_size: int) -> tuple[int, dict[str, int]]:
    """What each device takes of a batch, and which share of the batches this process has.

    Raises:
        PeftError: it does not divide.
    """
    each, rest = divmod(batch_size, trainer.world_size)
    if rest:
        raise PeftError(f"a batch of {batch_size} does not divide among {trainer.world_size} devices.")
    return each, {"rank": trainer.global_rank, "world_size": trainer.world_size}


def train(trainer: Trainer, module: Any, folder: Path, *batches: Any) -> None:
    """Trains, from the checkpoint in the folder where there is one, and lets the methods finish.

    Args:
        batches: to train on, and to score on while training.
    """
    checkpoint = folder / CHECKPOINT
    with quiet():
        trainer.fit(module, *batches, ckpt_path=checkpoint if checkpoint.is_file() else None)
        module.finish()


def planned_steps(trainer: Trainer, batches: int) -> int:
    """Optimiser steps of a whole run with so many batches an epoch.

    Lightning's `estimated_stepping_batches` starts the loader before it restores the loader's place from a checkpoint.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    steps = epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    if steps < 0 or 0 <= trainer.max_steps < steps:
        steps = trainer.max_steps
    if steps <= 0:
        raise PeftError("training needs an end: give --trainer.max_epochs or --trainer.max_steps, above 0.")
    return steps


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's notes, tips and guesses about mistakes, not its errors; `KeyboardInterrupt`, with the exit
    code, where it leaves the program because it was stopped."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=".*(litlogger|dataloader|ddp|rank|num_workers|LeafSpec).*")
            yield
    except SystemExit as stop:  # Lightning's answer to Ctrl-C, after which it ignores the key, and to SIGTERM
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt(143 if isinstance(stop, SIGTERMException) else 130) from stop
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there; reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_files(Path(path).parent, {Path(path).name: buffer.getvalue()})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location or "cpu")


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of Lightning's, tensors and plain values only.

    Raises:
        PeftError: it is truncated, no checkpoint, or holds other objects (which are never loaded).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols, which are refused
            content = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(content, dict) or not {"state_dict", "epoch", "global_step"} <= content.keys():
            raise ValueError("it holds something else")
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        why = "it is truncated or no checkpoint" if not isinstance(error, ValueError) else str(error)
        raise PeftError(
            f"{path} cannot be read ({why}): delete it, and the same command trains from the start, or give --overwrite."
        ) from error
    return content


def keep_trainables(checkpoint: dict[str, Any], models: Mapping[str, nn.Module]) -> None:
    """Leaves in a Lightning checkpoint what makes the models, named by their attribute paths, differ from the stock ones:
    a few MB."""
    checkpoint["state_dict"] = {
        f"{path}.{key}": value for path, model in models.items() for key, value in adapter_state(model).items()
    }
    checkpoint.pop("hyper_parameters", None)


def stepped(trainer: Trainer, index: int) -> bool:
    """Whether the optimiser stepped after this batch of an epoch: gradients are added up over several, at its end over fewer."""
    number = index + 1
    return number % trainer.accumulate_grad_batches == 0 or number == trainer.num_training_batches


class SaveState(Callback):
    """Writes `last.ckpt` at the end of each epoch, and between optimiser steps once `every` seconds have passed.

    The module's `note(index)` is called after each batch, before any checkpoint of it (Lightning calls a module's own
    hooks after those of callbacks), and `check_loss()` and `check_weights()` before each checkpoint: they may raise to
    keep the last one.
    `after_epoch` is called on the first process after an epoch's checkpoint.
    """

    def __init__(self, folder: Path, every: float, after_epoch: Callable[[], object]) -> None:
        self.path, self.every, self.after_epoch = folder / CHECKPOINT, every, after_epoch
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        module.note(index)
        number = index + 1
        if number == trainer.num_training_batches or not stepped(trainer, index):
            return
        late = time.monotonic() - self.last >= self.every
        if trainer.world_size > 1:  # all processes must agree, and asking costs a message
            late = trainer.strategy.broadcast(late) if number % 32 == 0 else False
        if late:
            self.save(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.save(trainer, module)
        if trainer.is_global_zero:
            with module.averaged():
                self.after_epoch()

    def save(self, trainer: Trainer, module: Any) -> None:
        module.check_loss()
        module.check_weights()
        trainer.save_checkpoint(self.path)
        self.last = time.monotonic()
