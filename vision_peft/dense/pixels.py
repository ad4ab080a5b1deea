"""What tasks with an output for every pixel share: mirrored pairs, and predictions as files."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft_data.batches import Batch
from peft_data.pictures import size_or
from PIL import Image
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.runs.use import Ready
from vision_peft.dense.task import MapsTask, alike


class Pixels(MapsTask):
    pixels = " H W"

    def ready(self, pictures: Any, data: Any) -> Any:
        size = (int(pictures.images.shape[-2]), int(pictures.images.shape[-1]))
        return dataclasses.replace(pictures, labels=self.maps(data, pictures.labels.tolist(), size))

    def maps(self, data: Any, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The labels of pixels, N H W, of rows of a data set's maps."""
        raise NotImplementedError(self.name)

    def how_to_read(self, model: Any) -> list[str]:
        if self.dense["head"] != "linear" or len(model.indices) > 1:
            return super().how_to_read(model)
        return [
            'norm, weight, bias = (state[f"head.{key}"] for key in ("norms.0.weight", "out.weight", "out.bias"))',
            "f, shift = maps[0].permute(0, 2, 3, 1), state['head.norms.0.bias']",
            "f = torch.nn.functional.layer_norm(f, norm.shape, norm, shift, 1e-6)",
            "outputs = torch.nn.functional.conv2d(f.permute(0, 3, 1, 2), weight, bias)",
        ]

    def augmented(self, augment: Any, batch: Batch, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures and the labels of their pixels, both mirrored or none."""
        images, labels = alike(augment, chance, batch.images, batch.labels[:, None])
        return images, labels[:, 0]

    def write_predictions(self, run: Any, paths: Sequence[str], out: str | None, batch_size: int, program: str) -> int:
        """Writes a file for each picture, at the picture's own size, into the folder `out`, and prints `path,file`."""
        if out is None:
            raise PeftError(f"predict of a run of the task {self.name} writes a file a picture: give --out a folder.")
        ready, folder = Ready(run, run.found(paths)), Path(out).expanduser()
        if folder.suffix and not folder.is_dir() or folder.is_file():
            raise PeftError(f"--out {out} must be a folder: predict writes a file a picture into it.")
        folder.mkdir(parents=True, exist_ok=True)
        table = csv.writer(text := io.StringIO(), lineterminator="\n")
        taken: set[str] = set()
        for row, prediction in enumerate(run.stream(ready, batch_size)):
            path, number = ready.read[row], 1
            name = path.stem
            while name in taken:
                number += 1
                name = f"{path.stem}_{number}"
            taken.add(name)
            self.picture(prediction, size_or(path, run.fit.size)).save(buffer := io.BytesIO(), format="PNG")
            write_files(folder, {f"{name}.png": buffer.getvalue()})
            table.writerow((path, folder / f"{name}.png"))
        print("path,file\n" + text.getvalue(), end="")
        return ready.told(program)

    def picture(self, prediction: Tensor, size: tuple[int, int]) -> Image.Image:
        """What is said of a picture, K H W, as one of a size."""
        raise NotImplementedError(self.name)

    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        raise PeftError(f"predictions of the task {self.name} are files: use `predict --run RUN --out FOLDER`.")
