"""What tasks on feature maps share: their options, the model, and how its merged weights are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft_data.base import ClassificationData
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.values import typed
from vision_peft.dense.model import dense_model
from vision_peft.dense.of_transformers import TransformersMaps
from vision_peft.tasks.base import Task, refuse_smoothing

AUGMENTS = ("none", "flip")


def alike(augment: Callable, chance: torch.Generator, *batches: Tensor) -> list[Tensor]:
    """Each of the batches changed by the same draws."""
    state, out = chance.get_state(), []
    for each in batches:
        chance.set_state(state)
        out.append(augment(each, chance))
    return out


class MapsTask(Task):
    """Args: dense: `head`, `size` and `width` of `DenseFlags`."""

    writes = True
    make: ClassVar[Callable[..., tuple[nn.Module, Backbone]]] = staticmethod(dense_model)
    """The model, of what `dense_model` takes."""

    def __init__(self, class_names: Sequence[str], dense: Mapping[str, Any]) -> None:
        super().__init__(class_names)
        self.dense = {"head": "linear", "size": 0, "width": 64} | dict(dense)

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> MapsTask:
        return cls(data.class_names, cls.options(settings))

    @classmethod
    def options(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of `DenseFlags` is given.

        Raises:
            PeftError: settings that maps cannot be trained with.
        """
        refuse_smoothing(cls.name, settings)
        if settings["augment"] not in AUGMENTS or settings["resize"] != "squash":
            raise PeftError(
                f"--task {cls.name} takes --augment {' or '.join(AUGMENTS)} and --resize squash: what is cut or bent needs its "
                "pixels' labels changed alike."
            )
        return settings["dense"].options if settings.get("dense") else {}

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> MapsTask:
        return cls(card["class_names"], typed(card.get("dense"), dict[str, Any], "dense in the adapter's card"))

    def card(self) -> dict[str, Any]:
        return super().card() | {"dense": dict(self.dense)}

    @property
    def flags(self) -> str:
        return " --out predicted"

    def model(
        self, load: Callable[..., tuple[nn.Module, Backbone]], settings: Mapping[str, Any]
    ) -> tuple[nn.Module, Backbone]:
        return type(self).make(load, settings["backbone"], self.width, settings["drop_path"], **self.dense)

    def how_to_load(self, name: str, arguments: Mapping[str, Any], transform: str, file: Path, model: Any) -> str:
        x = f"x = timm.data.create_transform({transform})(PIL.Image.open('picture.png').convert('RGB'))[None]"
        if isinstance(model.image, TransformersMaps):
            linear = self.dense["head"] == "linear"
            return _indented([x, *model.image.how_to_load(file, linear), *self.how_to_read(model)])
        given = {key: value for key, value in arguments.items() if key not in ("checkpoint_path", "num_classes")}
        words = ", ".join([f'"{name}"', "num_classes=0", *(f"{key}={value!r}" for key, value in given.items())])
        size = (
            [f"model.set_input_size(img_size={self.dense['size'], self.dense['size']})"] if self.dense["size"] else []
        )
        lines = [
            f"model, state = timm.create_model({words}), safetensors.torch.load_file({str(file)!r})",
            *(size if hasattr(model.image, "set_input_size") else []),
            'model.load_state_dict({key[6:]: each for key, each in state.items() if key.startswith("image.")})',
            x,
            f"maps = model.eval().forward_intermediates(x, indices={model.indices}, intermediates_only=True, norm={model.plain})",
        ]
        return _indented([*lines, *self.how_to_read(model)])

    def how_to_read(self, model: Any) -> list[str]:
        """Python from its `maps` and `state` to `outputs`."""
        return ['# the head reads these maps; its weights begin with "head." (peft_core.load_run runs both)']


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
