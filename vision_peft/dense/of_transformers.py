"""Feature maps of transformers' models, whatever their family, in the form in which timm's give theirs.

A model that makes maps itself is asked for them (`reshaped_hidden_states`: Swin, Hiera, FocalNet, Dinat). Of others a map is what
the next stage (ConvNeXt, ResNet) or the next layer (ViT, DINOv2, DINOv3, CLIP, SigLIP) receives, before anything joins it there,
and the last one what the model gives.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, describe
from peft_core.errors import PeftError

MAPS, BEFORE = "reshaped_hidden_states", "output_hidden_states_before_downsampling"
"""What models that make maps call them; what Swin is asked for besides, as each map would be the next stage's otherwise."""
POSITIONS = "interpolate_pos_encoding"


class _Here(threading.local):
    """What modules of the running forward received, by their path."""

    def __init__(self) -> None:
        self.received: dict[str, Tensor] | None = None


_HERE = _Here()


def _receives(path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    if _HERE.received is not None:
        _HERE.received[path] = args[0] if args else next(iter(kwargs.values()))


class TransformersMaps(nn.Module):
    """A stock model without its head; `forward_intermediates` and `feature_info` as timm's models have them.

    Args:
        model: gives `last_hidden_state` of pictures.
        size: height and width of the pictures.
        source: the folder or hub's name that its configuration comes from.

    Raises:
        PeftError: it gives no maps.
    """

    def __init__(self, model: Any, size: tuple[int, int], source: str) -> None:
        super().__init__()
        self.model, self.size, self.source = model, size, source
        anatomy = describe(model)
        stream = None if anatomy is None else anatomy.streams.get(None)
        self.norm, self.patch = (None, 0) if stream is None else (stream.last_norm, stream.patch)
        self.asked, stages = _makes_maps(model), _stages(model)
        layers = anatomy.blocks[None] if anatomy is not None and stream is not None else []
        if not (self.asked or stages or layers):
            raise PeftError(
                f"a {type(model).__name__} gives no feature maps: choose a ViT, Swin, ConvNeXt, ResNet or Hiera."
            )
        self.paths = [] if self.asked else (stages or layers)[1:]
        for path in [*self.paths, *([self.norm] if self.norm else [])]:
            model.get_submodule(path).register_forward_pre_hook(functools.partial(_receives, path), with_kwargs=True)
        resizes = POSITIONS in inspect.signature(model.forward).parameters and _own_size(model) not in (None, size)
        self.more: dict[str, Any] = {POSITIONS: True} if resizes else {}
        if self.asked:
            self.more["output_hidden_states"] = True
            if BEFORE in inspect.signature(getattr(model, "encoder", model).forward).parameters:
                self.more[BEFORE] = True
        maps = self._tried()
        self.grids = [(each.shape[2], each.shape[3]) for each in maps]
        self.feature_info = [{"num_chs": each.shape[1], "reduction": round(size[0] / each.shape[2])} for each in maps]

    def _tried(self) -> list[Tensor]:
        """The maps of an empty picture."""
        was, x = self.model.training, torch.zeros(1, 3, *self.size, device=next(self.model.parameters()).device)
        try:
            with torch.no_grad():
                found, received = self.eval()._run(x)
        finally:
            self.train(was)
        self.pools = (
            self.norm is not None and received[self.norm].dim() == 2
        )  # it normalises what it pools, and no token
        # from map to map sides shrink and channels grow
        self.channels_last = self.asked and found[MAPS][-1].shape[1] < found[MAPS][0].shape[1]
        return self._maps(found, received, x, False)

    def _run(self, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What the model gives, and what its modules received."""
        outer, _HERE.received = _HERE.received, {}
        try:
            return self.model(pixel_values=x, **self.more), _HERE.received
        finally:
            _HERE.received = outer

    def peft_anatomy(self) -> Anatomy | None:
        """The model's, with streams of the grids that pictures of this size have."""
        anatomy = describe(self.model)
        if anatomy is None:
            return None
        with_grid = [name for name, stream in anatomy.streams.items() if stream.grid is not None]
        if len(with_grid) <= len(self.grids):
            grids = zip(with_grid, self.grids[-len(with_grid) :], strict=False)
            anatomy.streams |= {name: dataclasses.replace(anatomy.streams[name], grid=grid) for name, grid in grids}
        return dataclasses.replace(anatomy.under("model"), heads=[])

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None, norm: bool = False, intermediates_only: bool = True
    ) -> list[Tensor]:
        """Maps B C h w, those of `indices`; of a model of layers with `norm` all normalised, as the last one is."""
        maps = self._maps(*self._run(x), x, norm)
        return maps if indices is None else [maps[index] for index in indices]

    def _maps(self, found: Any, received: dict[str, Tensor], x: Tensor, norm: bool) -> list[Tensor]:
        if self.asked:
            maps = {each.shape[1:]: each for each in found[MAPS]}.values()  # the last one of each size
            return [each.permute(0, 3, 1, 2) if self.channels_last else each for each in maps]
        between, last = [received[path] for path in self.paths], found.last_hidden_state
        if not self.patch:
            half = (between[-1].shape[2] // 2, between[-1].shape[3] // 2)
            return [*between, last if last.dim() == 4 else _picture(last, half)]
        after: Any = None if self.norm is None else self.model.get_submodule(self.norm)
        if after is not None:
            last = after(last) if self.pools else last
            between = [after(each) for each in between] if norm else between
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        return [_picture(each, grid) for each in (*between, last)]

    def how_to_load(self, file: Path, linear: bool) -> list[str]:
        """Lines of Python with which plain transformers makes `maps` of `x`, of merged weights in a file.

        Args:
            linear: the last map alone is read.
        """
        more = "".join(f", {key}={value!r}" for key, value in self.more.items())
        lines = [
            f"config = transformers.AutoConfig.from_pretrained({self.source!r})",
            f"model, state = transformers.AutoModel.from_config(config), safetensors.torch.load_file({str(file)!r})",
            "own = {key[12:]: each for key, each in state.items() if key.startswith('image.model.')}",
            "model.load_state_dict(own, strict=False)  # a pooler, which nothing reads, stays new",
            f"found = model.eval()(pixel_values=x{more})",
        ]
        if linear and not self.asked and self.patch:
            after = f"model.{self.norm}(found.last_hidden_state)" if self.pools else "found.last_hidden_state"
            height, width = self.grids[-1]
            lines.append(f"maps = [{after}[:, -{height * width}:].mT.unflatten(2, ({height}, {width}))]")
        return lines


def _picture(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """B N D as B D h w: its last tokens, what stands before them apart."""
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


def _makes_maps(model: nn.Module) -> bool:
    """Whether its family's outputs have maps among them."""
    known = vars(sys.modules[type(model).__module__]).values()
    return any(MAPS in getattr(each, "__dataclass_fields__", ()) for each in known)


def _stages(model: nn.Module) -> list[str]:
    """Paths of a hierarchical model's stages, each of which receives what the one before it gave."""
    lists = ((path, each) for path, each in model.named_modules() if isinstance(each, nn.ModuleList))
    path, found = next(((path, each) for path, each in lists if path.rpartition(".")[2] == "stages"), ("", ()))
    return [f"{path}.{number}" for number in range(len(found))]


def _own_size(model: Any) -> tuple[int, int] | None:
    size = getattr(model.config, "image_size", None)
    return (size, size) if isinstance(size, int) else tuple(size) if size else None
