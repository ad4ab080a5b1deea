"""A model's linears into few bits, for adapters to be trained beside them, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import unwrapped
from peft_core.errors import PeftError
from peft_core.grafts.classes import Adapted, swap_class
from peft_core.kernels.quantised import packed_of
from peft_core.parts.quantised.packed import BLOCK, KEPT, NF4Linear, PackedLinear, group_size, plain_linear
from peft_core.stock import find_heads

Kind = Literal["nf4", "int8", "int4", "int2"]
_CARRIED = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
            "_forward_pre_hooks_with_kwargs", "peft_taps")  # fmt: skip


def quantise(model: nn.Module, kind: Kind, keep: bool = False, group: int | None = None) -> nn.Module:
    """Pack the weights of a model's linears, in place; head, patch embedding, convolutions, norms and embeddings stay.

    Linears whose weight their owner reads without calling them (`nn.MultiheadAttention`'s, EVA's fused ones) stay, too.

    Args:
        kind: `nf4` (bitsandbytes; blocks of 64, double quantisation: 4.1 bits a weight), `int8` (a scale a row), `int4`
            (a scale and a zero point each 64 inputs: 5 bits) or `int2` (each 32: 4 bits).
        keep: leave the weights as they were at hand, for a method that starts from what is lost: the next `adapt` lets go of
            them.

        group: inputs that share a scale, where integers are to have others than their kind's; 0 is a whole row.

    Raises:
        PeftError: an unknown kind, a group that divides no width, an adapted model, no linear to pack, or bitsandbytes is not
            installed; the model is then as it was.
    """
    if kind not in MAKERS:
        raise PeftError(f'a model is quantised to {", ".join(MAKERS)}, not "{kind}".')
    if unwrapped(model) is not model or "_peft_record" in model.__dict__:
        raise PeftError("quantise a stock model, then adapt it and wrap or compile it.")
    chosen = linears(model)
    if not chosen:
        raise PeftError(f"this {type(model).__name__} has no plain linear to quantise.")
    packed = {path: packed_form(module, kind, group) for path, module in chosen.items()}
    for path, module in packed.items():
        if keep:
            module.__dict__[KEPT] = chosen[path].weight.detach()
        _put(model, path, module)
    return model


def dequantise(model: nn.Module) -> nn.Module:
    """Plain linears in place of quantised ones, with the numbers that those stand for: adapters stay, and can be merged then."""
    for path, module in list(model.named_modules()):
        new = plain_linear(module)
        if new is None:
            continue
        new._modules |= module._modules  # its grafts
        if isinstance(module, Adapted):
            swap_class(new)
        _put(model, path, new)
    return model


@contextmanager
def as_they_were(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block plain linears with these weights stand at their paths, without changes, and the same biases."""
    packed = {path: model.get_submodule(path) for path in weights}
    try:
        for path, module in packed.items():
            _put(model, path, plain_linear(module, weights[path]))  # type: ignore[arg-type]
        yield
    finally:
        for path, module in packed.items():
            _put(model, path, module)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Path → linear, of those whose weight may be packed."""
    anatomy = anatomy_of(model)
    apart = {
        *find_heads(model, anatomy),
        *(p.module for p in anatomy.places if p.role == "patch_embed" or not p.called),
    }
    inside = tuple(f"{path}." for path in apart)
    apart |= {
        f"{path}.{name}" for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)
        for name, _ in module.named_modules()
    }  # fmt: skip
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Linear and packed_of(module) is None and module.weight.is_floating_point()
        if path and path not in apart and not path.startswith(inside) and owners[id(module.weight)] == 1
    }


def packed_form(linear: nn.Linear, kind: Kind, group: int | None = None) -> PackedLinear:
    """A linear in few bits (see `quantise`)."""
    if kind == "nf4":
        if group not in (None, BLOCK):
            raise PeftError(f"nf4 has blocks of {BLOCK}, not of {group}: quantise to integers for other groups.")
        return NF4Linear(linear)
    bits, usual = INTEGERS[kind]
    return PackedLinear(linear, bits, group_size(linear.in_features, usual, group, bits))


INTEGERS = {"int8": (8, 0), "int4": (4, BLOCK), "int2": (2, BLOCK // 2)}
"""Bits, and inputs a scale; 0 is a whole row."""
MAKERS = ("nf4", *INTEGERS)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    old, (parent, _, name) = model.get_submodule(path), path.rpartition(".")
    module.__dict__.update({name: old.__dict__[name] for name in _CARRIED if name in old.__dict__})
    setattr(model.get_submodule(parent), name, module)
