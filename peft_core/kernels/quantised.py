"""Linears whose weight is packed into few bits: what they are, their weight as numbers, and a low-rank change beside it.

Known are bitsandbytes' 4-bit and 8-bit linears, torchao's tensors, and whatever module says itself how it is packed, in a
method `packed()`. Nothing here reads the packed tensor's own shape or dtype, which are the library's.

A dense weight lives for one product: it is formed in forward and again in backward, takes W + s·B A in place, and is let go.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.kernels.levels import from_levels
from peft_core.kernels.lowrank_linear import (
    Part,
    factor_gradients,
    merged,
    own_rows,
    parts_and_factors,
    split,
    stack,
    through_up,
)
from peft_core.kernels.rebuild import Recipe, autocast_dtype, kept_for, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated


class Packed(NamedTuple):
    """A packed weight (out, in): what of it is tensors, and the plain rest of what its kind needs to unpack it."""

    kind: str
    shape: tuple[int, int]
    tensors: tuple[Tensor, ...]
    about: tuple[Any, ...] = ()
    scale: Tensor | None = None
    """Of integers in groups (out, groups); may train."""

    @property
    def name(self) -> str:
        """nf4, fp4, int8 …"""
        if self.kind in ("groups", "levels"):
            return f"{'int' if self.kind == 'groups' else 'nf'}{self.about[0]}"
        return {"rows": "int8", "torchao": type(self.tensors[0]).__name__}.get(self.kind) or str(self.about[0])


def packed_of(module: nn.Module) -> Packed | None:
    """How a linear's weight is packed; None where it is plain, or packed in a way that is not known here."""
    own: Any = getattr(module, "packed", None)
    if callable(own):
        return own()  # type: ignore
    weight: Any = vars(module).get("_parameters", {}).get("weight")
    if weight is None or not isinstance(module, nn.Linear):
        return None
    if type(weight).__module__.startswith("torchao."):
        return Packed("torchao", (weight.shape[0], weight.shape[1]), (weight,))
    names = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("bitsandbytes.")}
    if "Linear4bit" in names:
        return _of_linear4bit(module, weight)
    if "Linear8bitLt" in names and not module.state.has_fp16_weights:  # type: ignore[union-attr]
        state: Any = module.state
        codes: Any = state.CB if state.CB is not None else weight.data
        scale: Any = state.SCB if state.SCB is not None else weight.SCB
        known = codes.dtype == torch.int8 and scale is not None
        return Packed("rows", tuple(codes.shape), (codes, scale)) if known else None  # type: ignore
    return None


def _of_linear4bit(module: nn.Module, weight: Any) -> Packed | None:
    # a pickled weight comes back as a plain parameter, and its module keeps the state
    state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
    if state is None:  # not yet moved to a device, which is when it is packed
        return None
    if getattr(state, "packing_format_for_cpu", False) or state.absmax.dim() == 2:
        _put_back(weight, state)
    codes = weight.data
    about = (state.quant_type, state.blocksize)
    if not state.nested:
        return Packed("blocks", tuple(state.shape), (codes, state.absmax), about)
    inner = state.state2
    tensors: Any = (codes, state.absmax, inner.absmax, inner.code, state.offset)
    return Packed("blocks", tuple(state.shape), tensors, (*about, inner.blocksize))


def _put_back(weight: Any, state: Any) -> None:
    """Undoes what an inference on some processors writes over a weight: its layout, and absmax in bfloat16 and turned round.
    bitsandbytes' own way back, which `state_dict` takes, leaves absmax turned where it was not quantised itself."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    if state.packing_format_for_cpu:
        turned, state.original_nested = state.absmax, False
        weight.data, _ = _convert_weight_packed_for_cpu_inverse(weight.data, state)
        state.absmax = turned
    state.absmax = state.absmax.t().reshape(-1).float()
    weight.quant_state = state


def bitsandbytes_ops() -> Any:
    """bitsandbytes' operators in torch, there once it is imported.

    Raises:
        PeftError: it is not installed.
    """
    if "bitsandbytes" not in sys.modules:
        logger = logging.getLogger("bitsandbytes")
        before, logger.level = logger.level, logging.ERROR  # it tells of kernels that it could have fetched
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise PeftError("NF4 needs bitsandbytes: pip install bitsandbytes.") from error
        finally:
            logger.level = before
    return torch.ops.bitsandbytes


def dense(packed: Packed, dtype: torch.dtype) -> Annotated[Tensor, "out in"]:
    """The weight as numbers, a tensor of its own."""
    kind, tensors = packed.kind, packed.tensors
    if kind == "torchao":
        return tensors[0].dequantize().to(dtype)  # type: ignore[attr-defined]
    if kind == "rows":  # q · s / 127
        codes, scale = tensors
        return codes.to(dtype).mul_(scale.unsqueeze(1).mul(1 / 127).to(dtype))
    if kind == "groups":
        return _integers(packed, dtype).mul_(_scale_of(packed).to(dtype).unsqueeze(-1)).view(packed.shape)
    if kind == "levels":
        return from_levels(tensors, packed.about, packed.shape, dtype)
    ops, wide = bitsandbytes_ops(), dtype if dtype.itemsize <= 4 else torch.float32
    (codes, absmax, *nested), (quant_type, block, *inner) = tensors, packed.about
    if nested:
        second, code, offset = nested
        absmax = ops.dequantize_blockwise.default(absmax, second.float(), code, *inner, torch.float32) + offset
    return ops.dequantize_4bit.default(codes, absmax, block, quant_type, packed.shape, wide).to(dtype)


def _scale_of(packed: Packed) -> Tensor:
    assert packed.scale is not None
    return packed.scale


def _integers(packed: Packed, dtype: torch.dtype) -> Annotated[Tensor, "out groups size"]:
    """q − z of integers in groups. A byte holds 8 / bits columns, a row's parts one behind the other."""
    (codes, zero), (bits, size), (out, width) = packed.tensors, packed.about, packed.shape
    numbers, slots = torch.empty(out, width, dtype=dtype, device=codes.device), 8 // bits
    for slot in range(slots):
        part = codes if slots == 1 else (codes >> (bits * slot)) & (2**bits - 1)
        numbers[:, slot * (width // slots) : (slot + 1) * (width // slots)] = part
    return numbers.view(out, width // size, size).sub_(zero.to(dtype).unsqueeze(-1))


def _with_factors(packed: Packed, parts: tuple[Part, ...], factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """W + Σ s·B A, formed in place on the dense weight."""
    wide = torch.promote_types(dtype, factors[0].dtype) if factors else dtype
    weight = dense(packed, wide)
    for (scale, rows), a, b in zip(parts, factors[::2], factors[1::2], strict=True):
        (weight if rows is None else weight[rows[0] : rows[1]]).addmm_(b.to(wide), a.to(wide), alpha=scale)
    return weight.to(dtype)


def _adding_pays(places: int, shape: tuple[int, int]) -> bool:
    """Whether adding s·B (A x) to y and its like to dx on `places` tokens touches less memory than W + s·B A in place does."""
    return not torch.compiler.is_compiling() and places * sum(shape) <= 2 * shape[0] * shape[1]


class _QuantisedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, scale: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                tensors: tuple[Tensor, ...], about: tuple[Any, ...], parts: tuple[Part, ...], dtype: torch.dtype | None,
                *factors: Tensor) -> Tensor:  # fmt: skip
        packed = _again(about, tensors, scale)
        x = x if dtype is None else x.to(dtype)
        inner, plain = None, dtype is None and bool(factors) and x.dtype == factors[0].dtype
        with torch.autocast(x.device.type, enabled=False):
            bias_there = None if bias is None else bias.to(x.dtype)
            if plain and _adding_pays(x.numel() // x.shape[-1], packed.shape):
                y = F.linear(x, dense(packed, x.dtype), bias_there)
                inner = stack(factors[::2]) @ x.reshape(-1, x.shape[-1]).t()
                flat = y.view(-1, y.shape[-1])
                for part, up, low in zip(parts, factors[1::2], split(inner, factors), strict=True):
                    own_rows(flat, part).addmm_(low.t(), up.t(), alpha=part.scale)
            else:
                y = F.linear(x, _with_factors(packed, parts, factors, x.dtype), bias_there)
        ctx.about, ctx.parts, ctx.recipe, ctx.dtype = about, parts, recipe, x.dtype
        ctx.counts, ctx.was_cast = (len(kept), len(tensors)), dtype is not None
        ctx.save_for_backward(*kept, *tensors, bias, scale, inner, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        many, of_weight = ctx.counts
        saved = ctx.saved_tensors
        kept, tensors = saved[:many], saved[many : many + of_weight]
        bias, scale, inner, *factors = saved[many + of_weight :]
        packed, parts = _again(ctx.about, tensors, scale), ctx.parts
        if is_differentiated():
            x = whole(ctx.recipe, kept) if kept else grad.new_zeros(*grad.shape[:-1], packed.shape[1]).requires_grad_()

            def run(x: Tensor, b: Tensor | None, s: Tensor | None, *f: Tensor) -> Tensor:
                return F.linear(x, plain_weight(packed._replace(scale=s), parts, f, x.dtype), b)

            dx, db, ds, *rest = gradients(run, (x, bias, scale, *factors), grad, ctx.was_cast)
            return dx, db, ds, None, None, None, None, None, None, *rest
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        back = through_up(g, parts, factors[1::2]) if parts else None
        dx = db = ds = None
        if ctx.needs_input_grad[0]:
            if inner is not None:
                dx = (g @ dense(packed, g.dtype)).addmm_(back.t(), stack(factors[::2]))  # type: ignore[union-attr]
            else:
                dx = g @ _with_factors(packed, parts, factors, g.dtype)
            dx = dx.view(*grad.shape[:-1], packed.shape[1])
        if ctx.needs_input_grad[1]:
            db = g.sum(0).to(bias.dtype)
        if ctx.needs_input_grad[2]:
            dw = g.t() @ whole(ctx.recipe, kept).reshape(-1, packed.shape[1]).to(g.dtype)
            numbers = _integers(packed, dw.dtype)
            ds = dw.view_as(numbers).mul_(numbers).sum(-1).to(scale.dtype)
        d_factors: list[Tensor] = []
        if back is not None:
            d_factors, _ = factor_gradients(pieces(ctx.recipe, kept), g, back, parts, factors, None, inner)
        return dx, db, ds, None, None, None, None, None, None, *d_factors


def _again(about: tuple[Any, ...], tensors: tuple[Tensor, ...], scale: Tensor | None) -> Packed:
    kind, shape, rest = about
    return Packed(kind, shape, tensors, rest, scale)


def plain_weight(packed: Packed, parts: tuple[Part, ...], factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """W + Σ s·B A by operations that autograd follows, to the scale of groups, too."""
    if packed.scale is not None and packed.scale.requires_grad:
        numbers = _integers(packed, dtype)
        weight = (numbers * packed.scale.to(dtype).unsqueeze(-1)).view(packed.shape)
    else:
        weight = dense(packed, dtype)
    return merged(weight, parts, factors).to(dtype) if parts else weight


def packed_linear(
    x: Annotated[Tensor, "... in"], packed: Packed, bias: Annotated[Tensor | None, "out"], deltas: Sequence[Any] = ()
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ s·B A, b) of a packed W, with A (r, in), B (rows, r) of `delta.factors()`; no dense weight is kept for
    backward."""
    parts, factors = parts_and_factors(deltas)
    trains = bool(parts) or (packed.scale is not None and packed.scale.requires_grad)
    recipe, kept = kept_for(x) if trains else (None, ())
    about = (packed.kind, packed.shape, packed.about)
    return _QuantisedLinear.apply(  # type: ignore[no-any-return]
        x, bias, packed.scale, recipe, kept, packed.tensors, about, parts, autocast_dtype(x.device.type), *factors
    )


def numbers_in(model: nn.Module) -> dict[int, int]:
    """Parameter's id → how many numbers of the model it stands for, where that is not its own count: of packed weights those
    that they hold, of frozen scales and zero points none."""
    found: dict[int, int] = {}
    for module in model.modules():
        packed = packed_of(module)
        if packed is not None:
            own: dict[str, Any] = module._parameters
            found |= {id(p): 0 for name, p in own.items() if name != "bias" and p is not None and not p.requires_grad}
            found[id(own["weight"])] = packed.shape[0] * packed.shape[1]
    return found
