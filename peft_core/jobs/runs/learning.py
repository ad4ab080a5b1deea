"""What the programs' LightningModules share: optimiser, schedule, chance, the loss's history, checkpoints."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.adapter_file import fit_grafts
from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import Diverged
from peft_core.jobs.runs.optimising import Optimising
from peft_core.jobs.runs.optimizers import Optimizer, check_optimizer
from peft_core.jobs.runs.training import keep_trainables, stepped
from peft_core.saved.card import FORMAT
from peft_core.stock import adapter_state


class Learning(Optimising):
    """AdamW (8-bit or paged too, by bitsandbytes), Adam with weight decay in the gradient, SGD, GaLore, MeZO, Prodigy or
    schedule-free AdamW (which keeps its rate behind the warm-up), the learning rate warmed up and then lowered along a cosine:

    lr(t) = lr · (t + 1) / w for the first w = warmup · T of T steps, then
    lr · (f + (1 − f) · (1 + cos(π (t − w) / (T − w))) / 2) with f = final_lr.

    Weight decay spares biases and other 1-D tensors, as timm's. A subclass adds each step's loss by `count(loss)` and
    names its adapted models in `adapted`, and in `kept` the attributes that go into checkpoints besides.

    `steps` are the optimiser steps of the whole run, T; `optimizer_settings` what this optimiser alone takes.
    """

    kept: ClassVar[tuple[str, ...]] = ()
    score: str = "accuracy"
    """What `history` calls the figure of a scored split."""
    by_steps: ClassVar[bool] = False
    """Whether its training is counted in steps rather than epochs."""

    def __init__(
        self,
        steps: int,
        *,
        optimizer: Optimizer = "adamw",
        optimizer_settings: Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        final_lr: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, lr)
        self.strict_loading = False  # a checkpoint holds the trainable part only
        self.steps, self.optimizer_settings = steps, dict(optimizer_settings or {})
        self.optimizer: Optimizer = optimizer
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup, self.final_lr, self.seed = warmup, final_lr, seed
        self.history: list[dict[str, float]] = []
        self.scored_on = "val"  # what `accuracy` in `history` was scored on
        self.loss_sum, self.loss_count = torch.zeros(()), 0  # since the last row of `history`
        self.epoch_sum, self.epoch_count = torch.zeros(()), 0
        self.epoch_loss: float | None = None
        self.rate_of_step = 0.0
        self.prepared = -1  # the epoch before which methods last prepared
        self.seconds, self.started = 0.0, 0.0  # of training, over all the times it was started

    def rates(self) -> list[tuple[nn.Module, float]]:
        """Every model that trains and its highest learning rate."""
        return [(model, self.lr) for model in self.adapted().values()]

    def on_train_start(self) -> None:
        self.started = time.monotonic() - self.seconds

    def on_train_epoch_start(self) -> None:
        epoch = self.trainer.current_epoch
        if self.prepared == epoch:
            return  # a run that goes on has in its checkpoint what it was prepared with
        again, self.prepared = bool(self.trainer.global_step or epoch), epoch
        for model in self.adapted().values():
            if lifecycle.wants(model, "prepare", again):
                with self._aside(model) as losses:
                    lifecycle.prepare(model, losses, again)

    @contextmanager
    def _aside(self, model: nn.Module | None) -> Iterator[lifecycle.Losses]:
        """The losses of training batches, for methods; training goes on as if nobody had looked. Where several processes train,
        what the methods of `model` prepared is then the first one's."""
        sizes = {} if model is None else {key: value.shape for key, value in adapter_state(model).items()}
        counted = self.loss_sum.clone(), self.loss_count, self.epoch_sum.clone(), self.epoch_count
        with torch.random.fork_rng(devices=[]):
            yield self._losses(copy.copy(self.trainer.train_dataloader))  # which counts its batches by itself
        if model is not None and self.trainer.world_size > 1:  # each process saw other pictures
            self._share(model, sizes)
        self.loss_sum, self.loss_count, self.epoch_sum, self.epoch_count = counted

    def _share(self, model: nn.Module, sizes: dict[str, torch.Size]) -> None:
        """Every process takes what the first one's methods prepared."""
        state = adapter_state(model)
        changed = torch.tensor(any(sizes[key] != value.shape for key, value in state.items()), device=self.device)
        if self.trainer.strategy.reduce(changed.float(), reduce_op="sum") > 0:
            raise PeftError(
                "this method lets the data decide how many weights of each layer train, and processes that train together have "
                "agreed on their sizes before: start it on one device, --trainer.devices 1."
            )
        for tensor in state.values():
            if not hasattr(tensor, "placements"):
                torch.distributed.broadcast(tensor, 0)

    def other_losses(self) -> dict[str, Callable[[Any], Tensor]]:
        """Further losses of a batch, by the names under which methods ask for them (`lifecycle.Losses`)."""
        return {}

    def labels_of(self, batch: Any) -> Tensor | None:
        """The classes of a batch's samples, where it has such."""
        return None

    def _losses(self, loader: Any) -> lifecycle.Losses:
        """Those of training batches, each computed when it is asked for."""
        index = itertools.count()

        def prepared(loss: Callable[[Any, int], Tensor]) -> Callable[[Any], Tensor]:
            def run(batch: Any) -> Tensor:
                batch, number = self.trainer.strategy.batch_to_device(batch, self.device), next(index)
                self.on_train_batch_start(batch, number)
                with self.trainer.precision_plugin.forward_context():
                    return loss(batch, number)

            return run

        others = {name: prepared(lambda batch, _, of=of: of(batch)) for name, of in self.other_losses().items()}
        labelled = type(self).labels_of is not Learning.labels_of
        labels: Any = self.labels_of if labelled else None
        return lifecycle.Losses(prepared(self.training_step), loader, others, labels)  # type: ignore[arg-type]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rate_of_step = optimizer.param_groups[0]["lr"]  # the schedule moves on before the step is noted

    def configure_gradient_clipping(self, optimizer: Any, *settings: Any, **more: Any) -> None:
        super().configure_gradient_clipping(optimizer, *settings, **more)
        for model in self.adapted().values():
            lifecycle.before_step(model)

    def count(self, loss: Tensor) -> Tensor:
        """Adds a step's loss to the mean that is noted; gives it with what the methods add to it."""
        self.loss_sum, self.loss_count = self.loss_sum.to(loss.device) + loss.detach(), self.loss_count + 1
        self.epoch_sum, self.epoch_count = self.epoch_sum.to(loss.device) + loss.detach(), self.epoch_count + 1
        return sum((lifecycle.penalty(model) for model in self.adapted().values()), loss)  # type: ignore

    def mean_of(self, loss: Callable[[], Tensor]) -> Tensor:
        """The mean loss of as many forwards as the methods ask for."""
        if self.without_gradients:
            for model in self.adapted().values():
                model.eval()
            with torch.no_grad():
                return self._mean_of(loss)
        return self._mean_of(loss)

    def _mean_of(self, loss: Callable[[], Tensor]) -> Tensor:
        times = max((lifecycle.instances(model) for model in self.adapted().values()), default=1)
        return loss() if times == 1 else torch.stack([loss() for _ in range(times)]).mean()

    def note(self, index: int) -> None:
        """Adds the mean loss since the last note to `history`, some 200 times a run and at each epoch's end."""
        step, last = self.trainer.global_step, index + 1 == self.trainer.num_training_batches
        behind_step = stepped(self.trainer, index)
        if behind_step:
            for model in self.adapted().values():
                progress, optimizer = lifecycle.Progress(min(step, self.steps), self.steps), self.optimizers(False)
                with self._aside(model) if lifecycle.prepares_again(model, progress) else nullcontext() as losses:
                    lifecycle.after_step(model, progress, losses, optimizer)  # type: ignore[arg-type]
        if last or (behind_step and (step % max(1, self.steps // 200) == 0 or step == self.steps)):
            loss = self.check_loss()
            self.history.append(
                {"step": step, "epoch": self.trainer.current_epoch, "lr": self.rate_of_step, "loss": loss}
            )
            self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        if last:
            self.epoch_loss = (self.epoch_sum / max(1, self.epoch_count)).item()
            self.epoch_sum, self.epoch_count = torch.zeros_like(self.epoch_sum), 0

    def check_loss(self) -> float:
        """The mean loss since the last note.

        Raises:
            Diverged: it, or a weight that trains, is not a number.
        """
        loss = (self.loss_sum / max(1, self.loss_count)).item()
        if not math.isfinite(loss):
            raise self.diverged(f"the loss became {loss}")
        return loss

    def check_weights(self) -> None:
        """Raises Diverged: a weight that trains is not a number."""
        trained = (p for model, _ in self.rates() for p in model.parameters() if p.requires_grad)
        if not all(torch.isfinite(p).all() for p in trained):
            raise self.diverged("trained weights became no numbers")

    def diverged(self, what: str) -> Diverged:
        kept = "the adapter of the last whole epoch is kept" if self.trainer.current_epoch else "no adapter is kept"
        return Diverged(
            f"{what} near step {self.trainer.global_step}, so training stops and {kept}: try a lower --lr than {self.lr:g}, or "
            "--trainer.gradient_clip_val 1."
        )

    def describe(self) -> str:
        """The last figures, for a progress bar: within an epoch its mean loss so far, at its end the whole epoch's."""
        loss = (self.epoch_sum / self.epoch_count).item() if self.epoch_count else self.epoch_loss
        return "" if loss is None else f"loss {loss:.4f}{self.scored()}"

    def scored(self) -> str:
        """The last figure of the scored split, after two blanks."""
        value = next((row[self.score] for row in reversed(self.history) if self.score in row), None)
        return "" if value is None else f"  {self.scored_on} {self.score} {value:.4f}"

    def configure_optimizers(self) -> dict[str, Any]:
        rates, decay = self.rates(), self.weight_decay
        return self.optimised([g for model, lr in rates for g in lifecycle.parameter_groups(model, lr, decay)])

    def trained_for(self) -> float:
        """Seconds of training, over all the times it was started."""
        return time.monotonic() - self.started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trainables(checkpoint, self.adapted())
        checkpoint["format"] = FORMAT
        checkpoint["prepared"] = self.prepared
        checkpoint["methods"] = {path: lifecycle.state(model) for path, model in self.adapted().items()}
        checkpoint["seconds"] = self.seconds = self.trained_for()
        checkpoint["history"] = self.history
        checkpoint["loss"] = (self.loss_sum.cpu(), self.loss_count)
        checkpoint["epoch_loss"] = (self.epoch_sum.cpu(), self.epoch_count, self.epoch_loss)
        checkpoint.update({name: getattr(self, name) for name in self.kept})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # loading is not strict, and what a method of an earlier version called otherwise would start anew in silence
        if foreign := sorted(
            key for key in checkpoint["state_dict"].keys() - self.state_dict().keys() if ".peft." in key
        ):
            raise PeftError(
                f"this run was begun by a version in which {foreign[0]} stood, and cannot go on: start it anew with --overwrite."
            )
        records = [model.__dict__.get("_peft_record") for model in self.adapted().values()]
        for adaptation in (each for record in records if record for each in record.adaptations.values()):
            settings = asdict(adaptation.method)
            if adaptation.method.of_card(settings, checkpoint.get("format", 1)) != settings:
                raise PeftError(
                    f"this run was begun by a version in which {adaptation.method.name} computed something else, and cannot go "
                    "on: start it anew with --overwrite."
                )
        self.prepared = checkpoint.get("prepared", 0)
        self.history, self.seconds = checkpoint["history"], checkpoint["seconds"]
        self.loss_sum, self.loss_count = checkpoint["loss"]
        self.epoch_sum, self.epoch_count, self.epoch_loss = checkpoint.get("epoch_loss", (torch.zeros(()), 0, None))
        for path, model in self.adapted().items():
            kept = checkpoint["state_dict"].items()
            weights = {key.removeprefix(f"{path}."): value for key, value in kept if key.startswith(f"{path}.")}
            fit_grafts(model, weights)
            lifecycle.load_state(model, checkpoint.get("methods", {}).get(path, {}))
        for name in self.kept:
            setattr(self, name, checkpoint.get(name, getattr(self, name)))  # an earlier version kept less

    def finish(self) -> None:
        """What the methods do when training has ended."""
        self.settle()
        for model in self.adapted().values():
            lifecycle.finish(model)
