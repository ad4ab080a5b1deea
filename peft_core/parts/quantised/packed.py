"""Linears with few bits a weight: integers in groups, or bitsandbytes' NF4 blocks, held as plain tensors of the module."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.kernels.levels import in_bytes
from peft_core.kernels.quantised import Packed, bitsandbytes_ops, dense, packed_linear, packed_of, plain_weight
from peft_core.kernels.twice import transforms_are_active

BLOCK, SECOND_BLOCK = 64, 256
"""Weights a scale, and scales a scale of scales (QLoRA's double quantisation)."""
KEPT = "peft_float_weight"
"""Where a packed linear has its weight as it was, in its `__dict__`: from `quantise(…, keep=True)` to the next `adapt`."""


class PackedLinear(nn.Linear):
    """A linear whose `weight` is packed. Its weight is read by `packed`; what else its kind has stands beside it.

    Integers (2, 4 or 8 bits): W = s·(q − z), a scale s and a floating zero point z each group of a row: `scale` and `zero`
    (out, groups) are parameters. NF4: `absmax` a byte a block, whose scale and mean are `second` and `offset`.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, linear: nn.Linear, bits: int, size: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.size, self.bias = bits, size, linear.bias
        # what open_clip reads in place of a linear's dtype where it is packed
        self.int8_original_dtype = linear.weight.dtype
        self.training = linear.training
        self.set_weight(linear.weight.detach())

    def set_weight(self, weight: Annotated[Tensor, "out in"]) -> None:
        """Packs other numbers in place of these."""
        codes, scale, zero = rounded(weight.float(), self.bits, self.size)
        self._put("weight", in_bytes(codes, self.bits))
        self._put("scale", scale)
        self._put("zero", zero)

    def _put(self, name: str, value: Tensor) -> None:
        setattr(self, name, nn.Parameter(value, requires_grad=False))

    def packed(self) -> Packed:
        shape = (self.out_features, self.in_features)
        return Packed("groups", shape, (self.weight, self.zero), (self.bits, self.size), self.scale)

    def forward(self, input: Tensor) -> Tensor:
        if transforms_are_active():
            weight = plain_weight(self.packed(), (), (), input.dtype)
            return nn.functional.linear(input, weight, self.bias)
        return packed_linear(input, self.packed(), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {self.bits} bits, {self.size} a group"
        )


class NF4Linear(PackedLinear):
    """Four bits whose 16 levels are quantiles of a normal distribution, blocks of 64, double quantisation (QLoRA)."""

    absmax: Tensor
    second: Tensor
    code: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, 4, BLOCK)

    def set_weight(self, weight: Annotated[Tensor, "out in"]) -> None:
        codes, tensors = nf4(weight)
        self._put("weight", codes)
        for name, tensor in zip(("absmax", "second", "code", "offset"), tensors, strict=True):
            self.register_buffer(name, tensor)

    def packed(self) -> Packed:
        shape = (self.out_features, self.in_features)
        tensors = (self.weight, self.absmax, self.second, self.code, self.offset)
        return Packed("blocks", shape, tensors, ("nf4", BLOCK, SECOND_BLOCK))


def nf4(weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """bitsandbytes' codes of a weight, and absmax, second absmax, code and offset of its double quantisation."""
    bitsandbytes_ops()
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    outer: Any = state
    inner: Any = outer.state2
    return codes, (outer.absmax, inner.absmax, inner.code.to(codes.device), outer.offset)


def rounded(
    weight: Annotated[Tensor, "out in"], bits: int, size: int
) -> tuple[Annotated[Tensor, "out in"], Annotated[Tensor, "out groups"], Annotated[Tensor, "out groups"]]:
    """Integers q, scale s and zero point z with W ≈ s·(q − z), each group of `size` inputs from its least to its largest."""
    groups = weight.view(len(weight), -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    # a group of one value: any scale serves, and it comes back as it is
    scale = ((high - low) / (2**bits - 1)).masked_fill(high == low, 1.0)
    zero = -low / scale
    codes = (groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8).view_as(weight), scale, zero


def packed_as(packed: Packed, weight: Annotated[Tensor, "out in"]) -> Packed:
    """Other numbers in the form of a packed weight's, integers in groups or NF4; of any number of rows."""
    shape = (weight.shape[0], weight.shape[1])
    if packed.kind == "groups":
        codes, scale, zero = rounded(weight.float(), *packed.about)
        return Packed("groups", shape, (in_bytes(codes, packed.about[0]), zero), packed.about, scale)
    codes, tensors = nf4(weight.float())
    return Packed("blocks", shape, (codes, *tensors), packed.about)


def group_size(width: int, usual: int, wanted: int | None, bits: int) -> int:
    """Inputs a scale: those wanted, else the largest number up to the usual one that divides the width; 0 is all of them."""
    if width % (8 // bits):
        raise PeftError(
            f"an input width of {width} does not fill bytes with {bits} bits each: leave that layer as it is."
        )
    size = (usual if wanted is None else wanted) or width
    if wanted and width % wanted:
        raise PeftError(f"groups of {wanted} inputs do not divide a width of {width}: choose another group.")
    return max(each for each in range(1, min(size, width) + 1) if width % each == 0)


def plain_linear(module: nn.Module, weight: Tensor | None = None) -> nn.Linear | None:
    """A quantised linear as a plain one with the numbers that it stands for, or with others; None where the module is none."""
    packed = packed_of(module)
    if packed is None:
        return None
    bias: Any = module.bias
    dtype = torch.float32 if bias is None else bias.dtype
    with torch.device("meta"):
        new: Any = nn.Linear(packed.shape[1], packed.shape[0], bias=bias is not None)
    numbers = dense(packed, dtype) if weight is None else weight.to(packed.tensors[0].device, dtype)
    new.weight, new.bias = nn.Parameter(numbers, requires_grad=False), bias
    new.training = module.training
    return new


def kept_weight(module: nn.Module) -> Tensor | None:
    """The weight of a quantised linear as it was, where it was kept."""
    return module.__dict__.get(KEPT)


def let_go(model: nn.Module) -> None:
    """Forgets the weights that were kept."""
    for module in model.modules():
        module.__dict__.pop(KEPT, None)
