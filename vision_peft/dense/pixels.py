"""What tasks with an output for every pixel share: the model, mirrored pairs, and predictions as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft_data.base import ClassificationData
from peft_data.batches import Batch
from peft_data.pictures import UNREADABLE, own_size
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.runs.use import Ready
from peft_core.values import typed
from vision_peft.dense.model import dense_model
from vision_peft.tasks.base import Task, refuse_smoothing

AUGMENTS = ("none", "flip")


class Pixels(Task):
    """Args: dense: `head`, `size` and `width` of `DenseFlags`."""

    writes, pixels = True, " H W"
    suffix: ClassVar[str] = ".png"

    def __init__(self, class_names: Sequence[str], dense: Mapping[str, Any]) -> None:
        super().__init__(class_names)
        self.dense = {"head": "linear", "size": 0, "width": 64} | dict(dense)

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Pixels:
        refuse_smoothing(cls.name, settings)
        if settings["augment"] not in AUGMENTS or settings["resize"] != "squash":
            raise PeftError(
                f"--task {cls.name} takes --augment {' or '.join(AUGMENTS)} and --resize squash: what is cut or bent needs its "
                "pixels' labels changed alike."
            )
        options = settings["dense"].options if settings.get("dense") else {}
        return cls(data.class_names, options)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Pixels:
        return cls(card["class_names"], typed(card.get("dense"), dict[str, Any], "dense in the adapter's card"))

    def card(self) -> dict[str, Any]:
        return super().card() | {"dense": dict(self.dense)}

    @property
    def flags(self) -> str:
        return " --out predicted"

    def model(
        self, load: Callable[..., tuple[nn.Module, Backbone]], settings: Mapping[str, Any]
    ) -> tuple[nn.Module, Backbone]:
        return dense_model(load, settings["backbone"], self.width, settings["drop_path"], **self.dense)

    def how_to_load(self, name: str, arguments: Mapping[str, Any], transform: str, file: Path, model: Any) -> str:
        given = {key: value for key, value in arguments.items() if key not in ("checkpoint_path", "num_classes")}
        words = ", ".join([f'"{name}"', "num_classes=0", *(f"{key}={value!r}" for key, value in given.items())])
        size = (
            [f"model.set_input_size(img_size={self.dense['size'], self.dense['size']})"] if self.dense["size"] else []
        )
        lines = [
            f"model, state = timm.create_model({words}), safetensors.torch.load_file({str(file)!r})",
            *(size if hasattr(model.image, "set_input_size") else []),
            'model.load_state_dict({key[6:]: each for key, each in state.items() if key.startswith("image.")})',
            f"x = timm.data.create_transform({transform})(PIL.Image.open('picture.png').convert('RGB'))[None]",
            f"maps = model.eval().forward_intermediates(x, indices={model.indices}, intermediates_only=True, norm={model.plain})",
        ]
        if self.dense["head"] == "linear" and len(model.indices) == 1:
            lines += [
                'norm, weight, bias = (state[f"head.{key}"] for key in ("norms.0.weight", "out.weight", "out.bias"))',
                "f, shift = maps[0].permute(0, 2, 3, 1), state['head.norms.0.bias']",
                "f = torch.nn.functional.layer_norm(f, norm.shape, norm, shift, 1e-6)",
                "outputs = torch.nn.functional.conv2d(f.permute(0, 3, 1, 2), weight, bias)",
            ]
        else:
            lines.append('# the head reads these maps; its weights begin with "head." (peft_core.load_run runs both)')
        return "\n".join(f"  {line}" for line in lines)

    def augmented(self, augment: Any, batch: Batch, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures and the labels of their pixels, both mirrored or none."""
        state = chance.get_state()
        images = augment(batch.images, chance)
        chance.set_state(state)
        return images, augment(batch.labels[:, None], chance)[:, 0]

    def write_predictions(self, run: Any, paths: Sequence[str], out: str | None, batch_size: int, program: str) -> int:
        """Writes a file for each picture, at the picture's own size, into the folder `out`, and prints `path,file`."""
        if out is None:
            raise PeftError(f"predict of a run of the task {self.name} writes a file a picture: give --out a folder.")
        ready, folder = Ready(run, paths), Path(out).expanduser()
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
            target = folder / f"{name}{self.suffix}"
            try:
                size = own_size(path)
            except UNREADABLE:
                size = tuple(prediction.shape[-2:])
            self.save(prediction, size, target)
            table.writerow((path, target))
        print("path,file\n" + text.getvalue(), end="")
        return ready.told(program)

    def save(self, prediction: Tensor, size: tuple[int, int], target: Path) -> None:
        """Writes what is said of a picture, K H W, at a size."""
        raise NotImplementedError(self.name)

    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        raise PeftError(f"predictions of the task {self.name} are files: use `predict --run RUN --out FOLDER`.")
