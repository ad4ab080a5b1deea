"""The LightningModule that trains a CLIP model's method, on cached features where the image tower is frozen."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft_data.augment import augmentation
from peft_data.batches import Batch, generator_of
from torch import Tensor, nn

from clip_peft.learner import grafted
from clip_peft.training.features import Encoder, Views
from peft_core.jobs.runs.learning import Learning
from peft_core.jobs.runs.training import stepped


class Contrast(Learning):
    """The method's loss, AdamW, Adam or SGD (momentum 0.9), and CoOp's schedule: of E epochs, the first w at the constant rate
    `warmup_lr` (none of them where E ≤ w), then lr · (f + (1 − f) · (1 + cos(π (e − w) / E)) / 2) in epoch e, f = `final_lr`.
    With `stepwise` e goes up with every step rather than every epoch, and the cosine ends with the run: (e − w) / (E − w).

    All chance in a step (view, augmentation, dropout) is a function of (seed, process, step), so a run that goes on from a
    checkpoint equals one that was never stopped. Parameters are float32 whatever the autocast.

    Args:
        encoder: of the model that trains, `encoder.whole`.
        steps: optimiser steps of the whole run, and
        an_epoch: of an epoch.
        views: cached features of the training pictures; None encodes augmented pictures at each step.
        augment: what is done to pictures where nothing is cached.
        learning: `Learning`'s settings: optimizer, lr, weight_decay, final_lr, seed.
    """

    def __init__(self, encoder: Encoder, steps: int, an_epoch: int, views: Views | None, *, augment: str, warmup_epochs: float,
                 warmup_lr: float, stepwise: bool, **learning: Any):  # fmt: skip
        super().__init__(steps, **learning)
        self.an_epoch = an_epoch
        self.model, self.encoder, self.views, self.augment = encoder.whole, encoder, views, augmentation(augment)
        self.warmup_epochs, self.warmup_lr, self.stepwise = warmup_epochs, warmup_lr, stepwise

    def adapted(self) -> dict[str, nn.Module]:
        return {"model.model": self.model.model} if grafted(self.model.method) else {}

    def rates(self) -> list[tuple[nn.Module, float]]:
        return [(self.model, self.lr)]

    def on_train_epoch_start(self) -> None:
        begins, learner = self.prepared != self.trainer.current_epoch, self.model.learner
        super().on_train_epoch_start()
        if begins and learner.prepares_each_epoch:
            with self._aside(None) as losses:
                learner.prepare(losses)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.chance = generator_of(self.seed, self.global_rank, step)
        torch.manual_seed(self.chance.initial_seed())
        self.model.learner.before_step(self.trainer.global_step, self.steps)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.views is not None:
            features = self.views.pick(batch.indices, self.chance).to(self.device)
            loss = self.model.learner.loss(features, batch.labels, None)
        elif self.encoder.frozen:
            features = self.encoder.encode(self.augment(batch.images, self.chance))
            loss = self.model.learner.loss(features, batch.labels, None)
        else:
            images = self.augment(batch.images, self.chance)
            if self.model.learner.method.second_view:
                images = torch.stack((images, self.augment(batch.images, self.chance)), dim=1)
            loss = self.mean_of(lambda: self.model.loss(self.encoder.images(images), batch.labels))
        return self.count(loss)

    def note(self, index: int) -> None:
        if stepped(self.trainer, index):
            with torch.no_grad():
                self.model.learner.after_step(self.trainer.global_step)
        if index + 1 == self.trainer.num_training_batches:  # before the checkpoint of this epoch is written
            self.model.end_epoch(self.trainer.current_epoch + 1, self.trainer.max_epochs or 1)
        super().note(index)

    def configure_optimizers(self) -> dict[str, Any]:
        own = [dict(group) for group in self.model.learner.parameter_groups(self.lr, self.weight_decay)]
        chosen = self.optimised(own) if own else super().configure_optimizers()

        if self.averaging is not None:
            return chosen

        def factor(step: int) -> float:
            return self.rate(step / self.an_epoch) / self.lr

        schedule = torch.optim.lr_scheduler.LambdaLR(chosen["optimizer"], factor)
        return chosen | {"lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs; each of the learner's stages has the whole schedule for itself."""
        whole, begun = self.steps / self.an_epoch, 0.0
        for share in self.model.learner.stages():
            if epochs < begun + share * whole - 1e-9:
                break
            begun += share * whole
        else:
            begun -= share * whole
        return self._rate(epochs - begun, share * whole)

    def _rate(self, epochs: float, total: float) -> float:
        warm = self.warmup_epochs if self.warmup_epochs < total - 1e-9 else 0.0  # else nothing would be learnt
        done = (epochs if self.stepwise else math.floor(epochs + 1e-9)) - warm
        if done < -1e-9:
            return self.warmup_lr
        share = min(1.0, done / max(1e-9, total - warm if self.stepwise else total))
        return self.lr * (self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * share)) / 2)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] |= {f"model.learner.{key}": v for key, v in self.model.learner.state_dict().items()}
