"""The one LightningModule that trains diffusion models with few parameters, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft_data.batches import generator_of
from torch import Tensor, nn

from diffusion_peft.base.families import Family
from diffusion_peft.base.texts import encode
from diffusion_peft.training.noise import Process, denoising_loss, offset_noise
from peft_core.jobs.runs.learning import Learning
from peft_core.jobs.runs.optimising import put_back
from peft_core.jobs.runs.training import stepped


class Denoiser(Learning):
    """L = w(t) ‖target − f(x_t, t, text)‖² + λ · the same on prior pictures; optimiser and schedule are `Learning`'s.

    x is drawn from the cached posterior; t, x_t, target and w are the `process`'s, what f is told and how it is called the
    base's `family`'s. All chance in a step is a function of (seed, process, step), so a run that goes on from a checkpoint
    equals one that was never stopped.

    Args:
        unet: the denoiser, a UNet or a transformer; predicts from latents B C h w.
        texts: text encoders by part name; empty where embeddings come with the batch.
        process: how pictures are noised.
        steps: optimiser steps of the whole run.
        family: of the base.
        normal: (shift, scale) of its latents.
        told: the scale that a guidance-distilled base is told.
        text_lr: learning rate of the text encoders; `lr` where None.
        prior_weight: λ.
        noise_offset: size of the offset noise.
        ema: decay of the running mean of what trains, (1 + n) / (10 + n) at most at step n; no mean where 0.
        clip_skip: layers of the text encoder left out at its end.
        learning: `Learning`'s settings.
    """

    kept: ClassVar[tuple[str, ...]] = ("mean",)
    by_steps: ClassVar[bool] = True

    def __init__(
        self,
        unet: nn.Module,
        texts: Mapping[str, nn.Module],
        process: Process,
        steps: int,
        *,
        family: Family,
        normal: tuple[Tensor, Tensor],
        told: float | None = None,
        text_lr: float | None = None,
        prior_weight: float = 1.0,
        noise_offset: float = 0.0,
        ema: float = 0.0,
        clip_skip: int = 0,
        **learning: Any,
    ) -> None:
        super().__init__(steps, **learning)
        self.unet, self.texts = unet, nn.ModuleDict(texts)
        self.process, self.family, self.told, self.text_lr = process, family, told, text_lr
        for name, value in zip(("latent_shift", "latent_scale"), normal, strict=True):
            self.register_buffer(name, value, persistent=False)
        self.prior_weight, self.noise_offset = prior_weight, noise_offset
        self.decay, self.clip_skip = ema, clip_skip
        self.mean: dict[str, Tensor] = {}

    def adapted(self) -> dict[str, nn.Module]:
        models = {"unet": self.unet} | {f"texts.{name}": model for name, model in self.texts.items()}
        return {path: model for path, model in models.items() if "_peft_record" in model.__dict__}

    def parts(self) -> dict[str, nn.Module]:
        """The adapted models by the pipeline's names of them."""
        names = {"unet": self.family.denoiser}
        return {names.get(path, path.removeprefix("texts.")): model for path, model in self.adapted().items()}

    def rates(self) -> list[tuple[nn.Module, float]]:
        text = self.lr if self.text_lr is None else self.text_lr
        return [(model, self.lr if model is self.unet else text) for path, model in self.adapted().items()]

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.chance = generator_of(self.seed, self.global_rank, step)
        torch.manual_seed(self.chance.initial_seed())

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return self.count(self.mean_of(lambda: self.loss(batch, self.chance)))

    def loss(self, batch: dict[str, Any], chance: torch.Generator, time: Tensor | None = None) -> Tensor:
        """L of a batch as `Examples.batch` makes it: pictures, and under `prior` as many prior pictures; at times that are drawn,
        or `time`."""
        groups = [(batch, 1.0)] + ([(batch["prior"], self.prior_weight)] if "prior" in batch else [])
        noised = [self.noised(group, chance, time) for group, _ in groups]
        inputs = [_inputs(one) for one in noised]
        if len(groups) == 2 and _alike(*inputs):  # one pass is faster than two
            predictions = self.predict(**{key: torch.cat([one[key] for one in inputs]) for key in inputs[0]}).chunk(2)
        else:
            predictions = tuple(self.predict(**one) for one in inputs)
        losses = [
            weight * denoising_loss(prediction, one["target"], self.process.weight(one["time"]), one.get("counts"))
            for prediction, one, (_, weight) in zip(predictions, noised, groups, strict=True)
        ]
        return torch.stack(losses).sum()

    def noised(
        self, group: dict[str, Tensor], chance: torch.Generator, time: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Latents drawn from the posterior, their noised form, the target, and what else the denoiser is told."""
        mean, device = group["mean"], group["mean"].device
        drawn = torch.randn(mean.shape, generator=chance).to(device)
        x = (mean + torch.exp(0.5 * group["logvar"]) * drawn - self.latent_shift) * self.latent_scale  # type: ignore[operator]
        noise = offset_noise(torch.randn(mean.shape, generator=chance), self.noise_offset, chance).to(device)
        time = (self.times(x, chance) if time is None else time).to(device)
        noised = {"x": self.process.mixed(x, noise, time), "time": time}
        noised["target"] = self.process.target(x, noise, time)
        return noised | {key: value for key, value in group.items() if key not in ("mean", "logvar", "prior")}

    def times(self, x: Tensor, chance: torch.Generator) -> Tensor:
        """t of each of these latents."""
        return self.process.times(x, chance)

    def predict(self, x: Tensor, time: Tensor, **text: Tensor) -> Tensor:
        """The denoiser on noised latents, under a prompt's embeddings or its token ids `ids_0` …"""
        if "hidden" not in text:
            ids = [text[f"ids_{number}"] for number in range(len(self.texts))]
            hidden, pooled = encode(list(self.texts.values()), ids, self.clip_skip)
            text |= {"hidden": hidden} | ({} if pooled is None else {"pooled": pooled})
        return self.family.predict(self.unet, x, time, self.told, **text)

    def scored(self) -> str:
        value = next((row["val_loss"] for row in reversed(self.history) if "val_loss" in row), None)
        return "" if value is None else f"  val loss {value:.4f}"

    # ---- the running mean ------------------------------------------------------------------------------------------

    def note(self, index: int) -> None:
        if self.decay and stepped(self.trainer, index):
            self.average(self.trainer.global_step)
        super().note(index)

    def trained(self) -> dict[str, Tensor]:
        return {
            f"{path}.{key}": parameter
            for path, model in self.adapted().items()
            for key, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def average(self, step: int) -> None:
        """m ← d m + (1 − d) p of everything that trains, after optimiser step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, parameter in self.trained().items():
            if key not in self.mean:
                self.mean[key] = parameter.detach().clone()
            self.mean[key] = self.mean[key].to(parameter.device).lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the models hold the running mean, where there is one, or their optimiser's."""
        if not self.mean:
            with super().averaged():
                yield
            return
        trained = self.trained()
        with put_back(trained.values()):
            with torch.no_grad():
                for key, parameter in trained.items():
                    parameter.copy_(self.mean[key])
            yield


def _inputs(noised: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in noised.items() if key not in ("target", "counts")}


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two groups have the same entries of the same sizes."""
    return one.keys() == other.keys() and all(value.shape == other[key].shape for key, value in one.items())
