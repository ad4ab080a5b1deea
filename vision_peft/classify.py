"""The one LightningModule that trains and scores a classifier, whatever the method."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from peft_data.augment import augmentation, normalise
from peft_data.batches import Batch, generator_of
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from peft_core.adapter_file import adapter_state
from peft_core.errors import PeftError
from peft_core.training import keep_trainables
from vision_peft.prefix_cache import PrefixCache
from vision_peft.scores import Scores


class Classifier(LightningModule):
    """Cross-entropy on an adapted model, AdamW or SGD, the learning rate warmed up and then lowered along a cosine:

    lr(t) = lr · (t + 1) / w for the first w = warmup · T of T steps, then
    lr · (f + (1 − f) · (1 + cos(π (t − w) / (T − w))) / 2) with f = final_lr.

    All chance in a step (augmentation, dropout, drop path) is a function of (seed, process, step), so a run that goes
    on from a checkpoint equals one that was never stopped. Weight decay spares biases and other 1-D tensors, as timm's.

    Args:
        model: images `B 3 H W` to logits `B C`; what requires grad is trained.
        steps: optimiser steps of the whole run, T.
        mean, std: of the channels, which go from 0 to 1.
        keep_best: remember the adapter that scored best on the validation split, in `best` (the legacy protocol).
    """

    strict_loading = False  # a checkpoint holds the trainable part only

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        steps: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        final_lr: float = 0.01,
        label_smoothing: float = 0.0,
        augment: str = "none",
        seed: int = 0,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std
        self.steps = steps
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.warmup, self.final_lr, self.label_smoothing = warmup, final_lr, label_smoothing
        self.augment, self.seed, self.keep_best = augmentation(augment), seed, keep_best
        self.prefix: PrefixCache | None = None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.scores: Scores | None = None
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        self.seconds, self.started = 0.0, 0.0  # of training, over all the times it was started
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.seen = CatMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `B C` of pictures as bytes, uint8 `B 3 H W`."""
        return self.model(normalise(images, self.mean, self.std))

    def on_train_start(self) -> None:
        self.started = time.monotonic() - self.seconds
        if self.prefix:
            self.prefix.fill(self.device, self.trainer.precision_plugin.forward_context)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.chance = generator_of(self.seed, self.global_rank, step)
        torch.manual_seed(self.chance.initial_seed())

    def training_step(self, batch: Batch, index: int) -> Tensor:
        logits = self.prefix(batch.indices) if self.prefix else self(self.augment(batch.images, self.chance))
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
        self.loss_sum, self.loss_count = self.loss_sum.to(loss.device) + loss.detach(), self.loss_count + 1
        return loss

    def note(self, index: int) -> None:
        """Adds the mean loss since the last note to `history`, some 200 times a run and at each epoch's end."""
        step, last = self.trainer.global_step, index + 1 == self.trainer.num_training_batches
        stepped = (index + 1) % self.trainer.accumulate_grad_batches == 0 or last
        if last or (stepped and step % max(1, self.steps // 200) == 0):
            loss = self.check_loss()
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            self.history.append({"step": step, "epoch": self.trainer.current_epoch, "lr": rate, "loss": loss})
            self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0

    def check_loss(self) -> float:
        """The mean loss since the last note.

        Raises:
            PeftError: it is not a number.
        """
        loss = (self.loss_sum / max(1, self.loss_count)).item()
        if not math.isfinite(loss):
            raise PeftError(
                f"the loss became {loss} near step {self.trainer.global_step}, so training stops and the adapter of the "
                f"last whole epoch is kept: try a lower --lr than {self.lr:g}, or --trainer.gradient_clip_val 1."
            )
        return loss

    def describe(self) -> str:
        """The last figures, for a progress bar."""
        loss = next((row["loss"] for row in reversed(self.history) if "loss" in row), None)
        accuracy = next((row["accuracy"] for row in reversed(self.history) if "accuracy" in row), None)
        words = [f"loss {loss:.4f}"] if loss is not None else []
        return "  ".join(words + ([f"accuracy {accuracy:.4f}"] if accuracy is not None else []))

    def validation_step(self, batch: Batch, index: int) -> None:
        probability, predicted = self(batch.images).float().softmax(-1).max(-1)
        self.confusion.update(predicted, batch.labels)
        self.seen.update(torch.stack([batch.indices.to(probability), predicted.float(), probability], 1))

    def on_validation_epoch_end(self) -> None:
        seen = self.seen.compute()
        seen = seen[seen[:, 0].argsort()].cpu()
        self.scores = Scores(self.confusion.compute().cpu(), seen[:, 1].long(), seen[:, 2])
        self.confusion.reset()
        self.seen.reset()
        if self.trainer.state.fn != "fit":
            return
        epoch, accuracy = self.trainer.current_epoch, self.scores.accuracy
        self.history.append({"step": self.trainer.global_step, "epoch": epoch, "accuracy": accuracy})
        if self.keep_best and accuracy > self.best.get("accuracy", -1.0):
            state = {key: value.detach().cpu().clone() for key, value in adapter_state(self.model).items()}
            self.best = {"accuracy": accuracy, "epoch": epoch, "state": state}

    def configure_optimizers(self) -> dict[str, Any]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
        else:
            # Lightning refuses to clip the gradients of a fused optimiser under float16
            optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=self.trainer.precision != "16-mixed")
        total = self.steps
        warm = round(self.warmup * total)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            done = min(1.0, (step - warm) / max(1, total - warm))
            return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trainables(checkpoint, self.model)
        checkpoint["seconds"] = self.seconds = time.monotonic() - self.started
        checkpoint["history"], checkpoint["best"] = self.history, self.best
        checkpoint["loss"] = (self.loss_sum.cpu(), self.loss_count)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.best, self.seconds = checkpoint["history"], checkpoint["best"], checkpoint["seconds"]
        self.loss_sum, self.loss_count = checkpoint["loss"]
