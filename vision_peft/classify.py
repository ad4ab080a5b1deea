"""The one LightningModule that trains and scores a model of pictures, whatever the method and the task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from peft_data.augment import augmentation, normalise
from peft_data.batches import Batch, generator_of
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.runs.learning import Learning
from peft_core.parts.selection.contrast import supervised_contrastive
from peft_core.stock import adapter_state
from vision_peft.prefix_cache import PrefixCache
from vision_peft.tasks.base import Task


class Classifier(Learning):
    """A task's loss on an adapted model; optimiser and schedule are `Learning`'s.

    All chance in a step (augmentation, dropout, drop path) is a function of (seed, process, step), so a run that goes
    on from a checkpoint equals one that was never stopped.

    Args:
        model: images `B 3 H W` to outputs, logits `B C` for classes; what requires grad is trained.
        task: its loss and its figures.
        steps: optimiser steps of the whole run, T.
        mean, std: of the channels, which go from 0 to 1.
        keep_best: remember the adapter that scored best on the validation split, in `best` (the legacy protocol).
        learning: `Learning`'s settings: optimizer, lr, weight_decay, warmup, final_lr, seed.
    """

    kept: ClassVar[tuple[str, ...]] = ("best", "named", "trained")

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        steps: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        augment: str = "none",
        keep_best: bool = False,
        **learning: Any,
    ) -> None:
        super().__init__(steps, **learning)
        self.model, self.task, self.score = model, task, task.score
        self.mean, self.std = mean, std
        self.augment, self.keep_best = augmentation(augment), keep_best
        self.prefix: PrefixCache | None = None
        self.best: dict[str, Any] = {}
        self.named: list[Any] = [
            torch.zeros((), dtype=torch.int64),
            0,
        ]  # right ones of this epoch's pictures so far, and all of them
        self.trained: float | None = (
            None  # the share of the last whole epoch's pictures, as they were trained on, that were named right
        )
        self.scores: Any = None
        self.meter = task.meter()

    def adapted(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for pictures as bytes, uint8 `B 3 H W`."""
        return self.model(normalise(images, self.mean, self.std))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.prefix:
            self.prefix.fill(self.device, self.trainer.precision_plugin.forward_context)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.chance = generator_of(self.seed, self.global_rank, step)
        torch.manual_seed(self.chance.initial_seed())

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.without_gradients:  # which calls this twice a step, and wants the same draws
            self.on_train_batch_start(batch, index)
        if not self.prefix:
            images, labels = self.task.augmented(self.augment, batch, self.chance)
            batch = batch._replace(images=images, labels=labels)

        def loss() -> Tensor:
            found = []
            for part in self.task.shares(self.model, batch):
                logits = self.prefix(part.indices) if self.prefix else self(part.images)
                if (right := self.task.right(logits, part.labels)) is not None:
                    self.named[0] = self.named[0].to(logits.device) + right
                    self.named[1] += len(part.labels)
                found.append((self.task.loss(logits, part.labels), len(part.labels)))
            return found[0][0] if len(found) == 1 else sum(loss * n for loss, n in found) / len(batch.labels)  # type: ignore

        return self.count(self.mean_of(loss))

    def other_losses(self) -> dict[str, Callable[[Any], Tensor]]:
        return {"contrastive": self.contrastive} if self.task.classes and hasattr(self.model, "forward_head") else {}

    def labels_of(self, batch: Batch) -> Tensor:
        if not self.task.classes:
            raise PeftError(
                f"this method looks at the classes of pictures, and {self.task.name} has none: choose another."
            )
        return batch.labels

    def contrastive(self, batch: Batch) -> Tensor:
        """The supervised contrastive loss of what the head reads, on two views of each picture."""
        images = torch.cat([self.augment(batch.images, self.chance) for _ in range(2)])
        model: Any = self.model
        features = model.forward_head(model.forward_features(normalise(images, self.mean, self.std)), pre_logits=True)
        return supervised_contrastive(torch.stack(features.float().chunk(2), 1), batch.labels)

    def note(self, index: int) -> None:
        super().note(index)
        if index + 1 == self.trainer.num_training_batches:
            self.trained = int(self.named[0]) / self.named[1] if self.named[1] else None
            self.named = [torch.zeros((), dtype=torch.int64), 0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["named"] = [self.named[0].cpu(), self.named[1]]

    def validation_step(self, batch: Batch, index: int) -> None:
        for part in self.task.shares(self.model, batch):
            self.meter.update(self(part.images), part)

    def on_validation_epoch_end(self) -> None:
        self.scores = self.meter.scores()
        if self.trainer.state.fn != "fit":
            return
        epoch, value = self.trainer.current_epoch, self.scores.value
        self.history.append({"step": self.trainer.global_step, "epoch": epoch, self.score: value})
        if self.keep_best and math.isnan(value):
            raise PeftError(
                f"the legacy protocol keeps the epoch of the best {self.score}, and these test pictures give none, as they lack "
                "what it compares: use --protocol honest."
            )
        if self.keep_best and value > self.best.get(self.score, -math.inf):
            state = {key: value.detach().cpu().clone() for key, value in adapter_state(self.model).items()}
            self.best = {self.score: value, "epoch": epoch, "state": state}

    def finish(self) -> None:
        self.settle()
        if self.keep_best:
            self.model.load_state_dict(self.best["state"], strict=False)
        super().finish()
