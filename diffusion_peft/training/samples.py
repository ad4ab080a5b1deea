"""Sample grids: the same prompts and seeds at every look, during training and at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.base.bases import Base
from diffusion_peft.drawing.draw import Chunk, Drawing, Prompt, draw, embed, embed_negative, grid, png_of
from peft_core.files import write_files
from peft_core.jobs.runs.training import Callback, Trainer


class Samples(Callback):
    """Draws `sample_count` pictures of each prompt every `sample_every` steps, into samples/STEP.png, one row a prompt.

    It stands before the callback that saves checkpoints: a run that dies in between draws the same grid again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder / "samples"
        self.count, self.every, self.clip_skip = (
            settings["sample_count"],
            settings["sample_every"] or 0,
            settings["clip_skip"],
        )
        side = settings["resolution"]
        self.how = Drawing(settings["sample_steps"], settings["guidance"], side, side, frames=settings["frames"])
        self.texts: list[str] = []
        self.prompts: list[Prompt] = []
        self.base: Base | None = None
        self.scales: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
        """Of the sweep at the end."""

    def embed(self, base: Base, texts: Sequence[str], trains_text: bool, device: torch.device) -> None:
        """Takes the prompts, and embeds them now where the text encoders do not train."""
        self.base, self.texts = base, list(texts)
        if self.count and not trains_text:
            encoders = [encoder.to(device) for encoder in base.text_encoders]
            self.prompts = [embed(base, text, self.clip_skip, encoders) for text in texts]
            self.prompts.append(embed_negative(base, "", self.clip_skip, encoders))

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if not self.every or not self.count or not trainer.is_global_zero or trainer.global_step >= module.steps:
            return
        an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if trainer.global_step // self.every > (trainer.global_step - an_epoch) // self.every:
            with module.averaged():
                self.write(f"{trainer.global_step:06d}.png", self.seen(self.rows(module)))

    def rows(self, module: Any) -> list[list[Image.Image]]:
        """A row of pictures for each prompt, by the models as they are."""
        assert self.base is not None
        prompts = self.prompts
        if not prompts:
            encoders = list(module.texts.values())
            prompts = [embed(self.base, text, self.clip_skip, encoders) for text in self.texts]
            prompts.append(embed_negative(self.base, "", self.clip_skip, encoders))
        wanted = [(prompt, seed) for prompt in prompts[:-1] for seed in range(self.count)]
        pictures = draw(
            self.base, module.unet, wanted, prompts[-1], self.how, before=self.before(module.unet), sources=self.sources()
        )  # fmt: skip
        self.base.free("vae")
        return [pictures[start : start + self.count] for start in range(0, len(pictures), self.count)]

    def sources(self) -> Sequence[Tensor]:
        """The source of each picture, where bases draw from one."""
        return ()

    def before(self, unet: nn.Module) -> Callable[[Chunk], object]:
        """What is called before each batch of pictures."""
        return lambda chunk: None

    def framed(self, rows: Sequence[Sequence[Image.Image]]) -> list[list[tuple[Image.Image, str]]]:
        """Rows as they are shown, each picture with what stands under it."""
        return [[(picture, f"seed {seed}") for seed, picture in enumerate(row)] for row in rows]

    def seen(self, rows: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
        return [[picture for picture, _ in row] for row in self.framed(rows)]

    def write(self, name: str, rows: list[list[Image.Image]]) -> bytes:
        png = png_of(grid(rows))
        write_files(self.folder, {name: png})
        return png
