"""The fast convolution with a low-rank change: y = x ∗ (W + s·B A) + b, with B A reshaped to W's (out, in, k, k).

As the low-rank linear it runs forward and dx at the frozen convolution's speed and never forms the dense dW:
    dA = s · (Bᵀ g) ⋆ x        dB = s · Σ g (x ∗ A)ᵀ
A convolution to r channels is slow as such. Where it keeps height and width, x ∗ A is one product (r·k² × in) x, whose k²
maps are then shifted and summed (`fold`); dA is (`unfold` of Bᵀ g) xᵀ. Both unfold r channels in place of all.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.kernels.lowrank_linear import Part, merged, merging_pays
from peft_core.kernels.rebuild import Recipe, autocast_dtype, cast_of, keep, kept_for, kept_of, whole
from peft_core.kernels.twice import gradients, is_differentiated


class Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def keeps_size(self, kernel: torch.Size) -> bool:
        around = tuple((size - 1) // 2 for size in kernel)
        odd = all(size % 2 for size in kernel)
        return odd and self == ((1, 1), around, (1, 1))


class Narrow:
    """The convolution with A (r, in·kh·kw): few channels out of many, and its two gradients."""

    def __init__(self, down: Tensor, weight: Tensor, geometry: Geometry):
        self.down, self.geometry = down.view(-1, *weight.shape[1:]), geometry
        self.kernel = weight.shape[2:]
        self.folds = geometry.keeps_size(self.kernel)

    @cached_property
    def maps(self) -> Tensor:
        """A of the flipped kernel, whose maps are shifted the other way: (r·kh·kw, in)."""
        if self.kernel.numel() == 1:
            return self.down.flatten(1)
        return self.down.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, self.down.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """x ∗ A: (B, r, h·w)"""
        if not self.folds:
            return F.conv2d(x, self.down, None, *self.geometry).flatten(2)
        maps = on_each(self.maps, x.flatten(2))
        if self.kernel.numel() == 1:
            return maps
        return F.fold(maps, x.shape[2:], self.kernel, padding=self.geometry.padding).flatten(2)

    def gradient(self, g: Tensor, x: Tensor, dx: Tensor | None, scale: float) -> Tensor:
        """dA; s · the gradient of x is added to dx. g: (B, r, h, w)"""
        if not self.folds:
            extra, d_down, _ = backward(g, x, self.down, self.geometry, (dx is not None, True, False))
            assert d_down is not None
            if dx is not None and extra is not None:
                dx.add_(extra, alpha=scale)
            return d_down.flatten(1)
        if self.kernel.numel() == 1:
            spread = g.flatten(2)
        else:
            spread = F.unfold(g, self.kernel, padding=self.geometry.padding)
        d_maps = (spread @ x.flatten(2).transpose(1, 2)).sum(0)
        if dx is not None:
            add_on_each(dx, self.maps.t(), spread, scale)
        if self.kernel.numel() == 1:
            return d_maps
        return d_maps.view(-1, *self.kernel, x.shape[1]).flip(1, 2).permute(0, 3, 1, 2).flatten(1)


def on_each(matrix: Tensor, x: Tensor) -> Tensor:
    """M x for each x of a batch; `@` would first copy the batch where M is a parameter's."""
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x)


def add_on_each(y: Tensor, matrix: Tensor, x: Tensor, scale: float) -> None:
    """y (B, c, h, w) += s · M x"""
    if y.is_contiguous():
        y.flatten(2).baddbmm_(matrix.expand(x.shape[0], -1, -1), x, alpha=scale)
    else:
        y.add_(on_each(matrix, x).view(y.shape), alpha=scale)


def backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dW and db of the stock convolution, those that `mask` asks for."""
    return torch.ops.aten.convolution_backward(g, x, weight, [len(weight)], *geometry, False, [0, 0], 1, mask)  # type: ignore[no-any-return]


class _LowRankConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                geometry: Geometry, part: Part, dtype: torch.dtype | None, down: Tensor, up: Tensor) -> Tensor:  # fmt: skip
        inner, new = None, None
        places = x.numel() // (x.shape[1] * geometry.stride[0] * geometry.stride[1])
        plain = dtype is None and x.dtype == weight.dtype == down.dtype
        if plain and not merging_pays(places, weight):
            inner = Narrow(down, weight, geometry)(x)
            y = F.conv2d(x, weight, bias, *geometry)
            add_on_each(y, up, inner, part.scale)
        else:
            x = x if dtype is None else x.to(dtype)
            with torch.autocast(x.device.type, enabled=False):
                new = _merged(weight, part, down, up).to(x.dtype)
                y = F.conv2d(x, new, None if bias is None else bias.to(x.dtype), *geometry)
        ctx.geometry, ctx.part = geometry, part
        keep(ctx, x, recipe, kept, dtype, weight, bias, cast_of(new, weight), inner, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, new, inner, down, up) = kept_of(ctx)
        if is_differentiated():
            x = whole(ctx.recipe, kept)
            dx, dw, db, d_down, d_up = gradients(
                lambda x, w, b, a, u: F.conv2d(x, _merged(w, ctx.part, a, u).to(x.dtype), b, *ctx.geometry),
                (x, weight, bias, down, up), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, None, d_down, d_up
        g, x = grad.to(ctx.dtype), whole(ctx.recipe, kept).to(ctx.dtype)
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
        if inner is not None:
            new = weight
        elif new is None:
            new = _merged(weight, ctx.part, down, up) if of_input else weight
        dx, dw, db = backward(g, x, new, ctx.geometry, (of_input, of_weight, of_bias))
        narrow = Narrow(down.to(ctx.dtype), weight, ctx.geometry)
        flat = g.flatten(2)
        back = on_each(up.to(ctx.dtype).t(), flat).view(len(g), -1, *g.shape[2:])
        d_down = narrow.gradient(back, x, None if inner is None else dx, ctx.part.scale)
        inner = narrow(x) if inner is None else inner
        d_up = (inner @ flat.transpose(1, 2)).sum(0).t()
        d_down, d_up = (d.to(of.dtype).mul_(ctx.part.scale) for d, of in ((d_down, down), (d_up, up)))
        return dx, dw, db, None, None, None, None, None, d_down, d_up


def _merged(weight: Tensor, part: Part, down: Tensor, up: Tensor) -> Tensor:
    return merged(weight.flatten(1), (part,), (down, up)).view(weight.shape)


def lowrank_conv(module: nn.Conv2d, x: Tensor, delta: Any) -> Tensor | None:
    """The convolution of `module` with W + s·B A: x (B, in, H, W), A (r, in·kh·kw), B (out, r).

    None where it is not a plain zero-padded one of a batch: others run as two convolutions."""
    if x.dim() != 4 or module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    geometry = Geometry(module.stride, module.padding, module.dilation)  # type: ignore[arg-type]
    weight, bias = module.weight, module.bias
    return _LowRankConv.apply(  # type: ignore[no-any-return]
        x,
        weight,
        bias,
        *kept_for(x),
        geometry,
        Part(delta.scale * delta.factor, None),
        autocast_dtype(x.device.type),
        *delta.factors(),
    )
