"""The frozen blocks below the earliest trained one give the same features for a picture at every epoch: run them once."""

from typing import Annotated

import torch
from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import is_inserted
from peft_core.errors import PeftError


class FrozenPrefix:
    """Splits an adapted model before its earliest block that trains: model(x) == rest(features(x)).

    Attributes:
        start: index of that block; 0 where nothing is frozen below it, the depth where only the head trains.
        deterministic: no dropout, drop path or patch drop acts in the prefix, so its features can be kept.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.anatomy = anatomy_of(model)
        if self.anatomy.embed is None or self.anatomy.finish is None:
            raise PeftError(f"{self.anatomy.family}: cannot run this model from a block on.")
        (paths,) = self.anatomy.blocks.values()
        self.blocks = [model.get_submodule(path) for path in paths]
        self.start = self._start(paths)
        later = tuple(f"{path}." for path in paths[self.start :])
        last = {*self.anatomy.heads, *self.anatomy.tail}
        before = (m for name, m in model.named_modules() if name not in last and not name.startswith(later))
        self.deterministic = not any(_rate(module) for module in before)

    def _start(self, paths: list[str]) -> int:
        blocks = {path: index for index, path in enumerate(paths)}
        start = len(paths)
        late = tuple(f"{path}." for path in (*self.anatomy.heads, *self.anatomy.tail))
        for key, parameter in self.model.named_parameters():
            if parameter.requires_grad or is_inserted(key):
                owner = next((index for path, index in blocks.items() if key.startswith(path + ".")), None)
                if owner is None and not key.startswith(late):
                    return 0
                start = min(start, len(paths) if owner is None else owner)
        return start

    @torch.no_grad()
    def features(self, x: Tensor) -> Annotated[Tensor, "B N D"]:
        """What block `start` receives: B N D."""
        tokens = self.anatomy.embed(self.model, x)  # type: ignore[misc]
        for block in self.blocks[: self.start]:
            tokens = block(tokens)
        return tokens

    def rest(self, features: Annotated[Tensor, "B N D"]) -> Tensor:
        """The model's output from what block `start` receives."""
        for block in self.blocks[self.start :]:
            features = block(features)
        return self.anatomy.finish(self.model, features)  # type: ignore[misc]


def _rate(module: nn.Module) -> float:
    rates = [getattr(module, name, 0.0) for name in ("p", "drop_prob", "prob")]
    return max(rate for rate in rates if isinstance(rate, int | float))
