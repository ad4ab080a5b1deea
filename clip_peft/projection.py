"""The linear map that ends a CLIP model's image tower, and what the tower gives it."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError

LINEARS = ("attnpool.c_proj", "head.proj")
"""Where it is a layer: of a ResNet's attention pooling, of a tower of timm's; a ViT of open_clip has a matrix, `proj`."""


class ImageProjection:
    """y = x W + b of features x … D, W (D, E).

    Args:
        model: an open_clip model.

    Raises:
        PeftError: its image tower ends otherwise.
    """

    def __init__(self, model: Any):
        self.visual = model.visual
        matrix = getattr(self.visual, "proj", None)
        layers = (path for path in LINEARS if isinstance(_found(self.visual, path), nn.Linear))
        self.path = "proj" if isinstance(matrix, nn.Parameter) and matrix.dim() == 2 else next(layers, "")
        if not self.path:
            raise PeftError(
                f"the image tower {type(self.visual).__name__} ends in no linear projection of its own: choose a model whose "
                "tower does (open_clip's ViTs and ResNets), or a method that works behind it."
            )

    @property
    def stock(self) -> Tensor:
        """The parameter that holds W, or its transpose (a layer's)."""
        found: Any = _found(self.visual, self.path)
        return found if self.path == "proj" else found.weight

    @property
    def weight(self) -> Tensor:
        return self.stock if self.path == "proj" else self.stock.t()

    @property
    def bias(self) -> Tensor | None:
        return None if self.path == "proj" else _found(self.visual, self.path).bias

    def __call__(self, features: Tensor, weight: Tensor | None = None) -> Tensor:
        """… E, with another matrix in W's place where one is given."""
        weight = self.weight if weight is None else weight
        return F.linear(features.to(weight.dtype), weight.t(), self.bias)

    def before(self, images: Tensor) -> Tensor:
        """What the projection receives, B D. The tower stays as it is, so that threads may share it."""
        instead: Any = None
        if self.path != "proj":
            layer: Any = _found(self.visual, self.path)
            instead = nn.Linear(layer.in_features, layer.in_features, device="meta")
            instead.weight = nn.Parameter(torch.eye(layer.in_features).to(layer.weight), requires_grad=False)
            instead.bias = nn.Parameter(layer.weight.new_zeros(layer.in_features), requires_grad=False)
        features = put_at(self.visual, self.path, instead)(images)
        return features if isinstance(features, Tensor) else features[0]

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """W in the stock model's place."""
        self.weight.copy_(weight)


def _found(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def put_at(module: nn.Module, path: str, other: nn.Module | None) -> nn.Module:
    """The module with another one (no parameter, where None) at a path, which shares all else with it."""
    first, _, rest = path.partition(".")
    twin = copy.copy(module)
    if other is None:
        twin._parameters = {**module._parameters, first: None}
    else:
        inner = put_at(module.get_submodule(first), rest, other) if rest else other
        twin._modules = {**module._modules, first: inner}
    return twin
