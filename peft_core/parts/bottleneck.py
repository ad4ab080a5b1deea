"""The bottleneck that adapters share: s · γ ⊙ Up(drop(act(Down x))), Down (h, D), Up (D, h)."""

import math
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError, nearest
from peft_core.grafts.graft import match
from peft_core.kernels.formed import mapped
from peft_core.kernels.twice import transforms_are_active

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def _blank(rows: int, columns: int, options: dict[str, Any], bias: bool = True) -> nn.Linear:
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, rows, columns, bias, **options))


def kaiming_linear(rows: int, columns: int, options: dict[str, Any], bias: bool = True) -> nn.Linear:
    """A linear layer with a Kaiming-uniform weight (a = √5) and a zero bias."""
    made = _blank(rows, columns, options, bias)
    nn.init.kaiming_uniform_(made.weight, a=math.sqrt(5))
    if bias:
        nn.init.zeros_(made.bias)
    return made


class Bottleneck(nn.Module):
    """Down is Kaiming-uniform (a = √5), Up and the biases are zero: no change at step 0, and a gradient from step 1 on.
    With `std` both weights are N(0, std²) instead, truncated at 2 std, or with `tails` as it is.

    Args:
        dim, width: D and h.
        out: the width of what comes out, D where None.
        scale: s, a number, or a learnt one that starts there with `learn_scale`.
        channel_scale: whether γ (D), starting at 1, is there.
        drop_path: probability that a sample goes without the change in training (rescaled, as in stochastic depth).
    """

    def __init__(self, dim: int, width: int, *, activation: str, scale: float = 1.0, learn_scale: bool = False,
                 dropout: float = 0.0, channel_scale: bool = False, drop_path: float = 0.0, std: float | None = None,
                 tails: bool = False, out: int | None = None, bias: bool = True, options: dict[str, Any]):  # fmt: skip
        super().__init__()
        if activation not in ACTIVATIONS:
            raise PeftError(
                f'unknown activation "{activation}"{nearest(activation, ACTIVATIONS)} (known: {", ".join(ACTIVATIONS)}).'
            )
        self.down = kaiming_linear(dim, width, options, bias)
        self.up = _blank(width, dim if out is None else out, options, bias)
        for zero in (self.up.weight, self.up.bias) if bias else (self.up.weight,):
            nn.init.zeros_(zero)
        if std is not None:
            for weight in (self.down.weight, self.up.weight):
                nn.init.normal_(weight, std=std) if tails else nn.init.trunc_normal_(
                    weight, std=std, a=-2 * std, b=2 * std
                )
        self.activation = activation
        self.scale = nn.Parameter(torch.full((1,), scale, **options)) if learn_scale else scale
        self.gamma = nn.Parameter(torch.ones(dim, **options)) if channel_scale else None
        self.dropout = dropout
        self.drop_path = drop_path

    def forward(self, x: Annotated[Tensor, "... D"]) -> Annotated[Tensor, "... O"]:
        x = ACTIVATIONS[self.activation](wide_linear(x, self.down))
        x = self.up(F.dropout(x, self.dropout, self.training) if self.dropout else x)
        if self.gamma is not None:
            x = x * self.gamma
        if not isinstance(self.scale, float) or self.scale != 1.0:
            x = x * self.scale
        return drop_samples(x, self.drop_path, self.training)


def wide_linear(x: Annotated[Tensor, "... D"], layer: nn.Linear) -> Annotated[Tensor, "... O"]:
    """What a linear of a higher precision makes of x, of which no wider copy is kept."""
    weight, bias = layer.weight, layer.bias
    alike = x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
    if (
        alike
        or type(layer) is not nn.Linear
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or transforms_are_active()
    ):
        return layer(match(x, weight))
    return mapped(x, _linear, weight, *(() if bias is None else (bias,)), back=_linear_back)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def _linear_back(grad: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor | None, ...]:
    g = grad.reshape(-1, len(weight))
    of_weight = g.t() @ x.reshape(-1, weight.shape[1]).to(g.dtype) if weight.requires_grad else None
    return (grad @ weight).to(x.dtype), of_weight, *(g.sum(0) for _ in bias)


def drop_samples(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop path: x of a sample is 0 with probability `rate` in training, else x / (1 − rate)."""
    if not rate or not training:
        return x
    return x * (x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - rate) / (1 - rate))
