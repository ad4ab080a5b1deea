from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import formed_linear
from peft_core.grafts.graft import Delta
from peft_core.kernels.formed import mapped
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.values import Count, Range, Whole


class Rotation(Delta):
    """W' = W Rᵀ, R block-diagonal over the inputs with blocks (I + Q)(I − Q)⁻¹, Q skew-symmetric, zero at step 0.

    vectors (blocks, b(b−1)/2) hold what stands above the diagonals of Q. A convolution's inputs are its in·kh·kw weights.
    """

    needs_matrix = True
    rebuilds_input = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, size: int, terms: int):
        super().__init__(rows)
        self.size, self.terms = size, terms
        self.vectors = new_parameter(weight, weight[0].numel() // size, size * (size - 1) // 2)
        nn.init.zeros_(self.vectors)
        row, column = torch.triu_indices(size, size, 1, device=weight.device)
        self.register_buffer("above", row * size + column, persistent=False)

    def blocks(self) -> Tensor:
        """R, as (blocks, b, b)."""
        return self.made_of(self.vectors)

    def made_of(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # no solver works in 16 bits
        above: Any = self.above
        upper = vectors.new_zeros(len(vectors), self.size**2).index_copy(1, above, vectors)
        upper = upper.view(-1, self.size, self.size)
        q = upper - upper.mT
        eye = torch.eye(self.size, device=q.device, dtype=q.dtype)
        if not self.terms:
            return torch.linalg.solve(eye - q, eye + q, left=False)
        return neumann(eye, q, self.terms)

    def forward(self, weight: Tensor) -> Tensor:
        blocks = self.blocks()
        split = weight.reshape(weight.shape[0], -1, self.size).to(blocks.dtype)
        return torch.einsum("onj,nij->oni", split, blocks).reshape(weight.shape).to(weight.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["Rotation"]) -> Tensor:
        """Rotates x in place of W: no dense gradient, N·in·b products in place of out·in·b."""
        if any(delta.rows is not None or delta.factor != 1.0 for delta in deltas):
            return formed_linear(x, weight, bias, deltas)
        for delta in reversed(deltas):
            # beside activations of 16 bits what the series keeps in float32 weighs; else making it again costs more
            again = weight.element_size() < 4 or torch.is_autocast_enabled(x.device.type)
            blocks = mapped(delta.vectors, delta.made_of) if again else delta.blocks()
            x = mapped(x, rotated, blocks, back=rotated_back)
        return F.linear(x, weight, bias)


def neumann(eye: Tensor, q: Tensor, terms: int) -> Tensor:
    """1 + 2q + 2q² + … with the last power once, which is (1 + q)(1 + q + … + q^(terms−2)), in few products by powers of q²."""
    if terms == 2:
        return eye + q
    square = q @ q
    powers = eye
    for _ in range((terms - 1) // 2 - 1):
        powers = eye + square @ powers
    if terms % 2:
        twice = eye + 2 * q + square  # (1 + q)²
        return twice if powers is eye else twice @ powers
    series = q + square
    series = eye + (series if powers is eye else series @ powers)
    return series + q @ series


def rotated(x: Tensor, blocks: Tensor) -> Tensor:
    """R x, of each of the last dimension's pieces by its block."""
    split, blocks = x.unflatten(-1, blocks.shape[:2]), blocks.to(x.dtype)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return torch.einsum("...ni,nij->...nj", split, blocks).flatten(-2)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    places = y.view(-1, *blocks.shape[:2]).transpose(0, 1)  # written where they belong, without a copy
    torch.bmm(split.reshape(-1, *blocks.shape[:2]).transpose(0, 1), blocks.contiguous(), out=places)
    return y


def rotated_back(grad: Tensor, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the blocks."""
    split, g = (each.reshape(-1, *blocks.shape[:2]) for each in (x, grad))
    d_blocks = torch.bmm(split.permute(1, 2, 0), g.to(x.dtype).transpose(0, 1))
    return rotated(grad, blocks.mT).to(x.dtype), d_blocks.to(blocks.dtype)


@dataclass(frozen=True, kw_only=True)
class OFT(Method):
    """OFT: W' = W Rᵀ, y = W Rᵀ x: a block-diagonal orthogonal R, by Cayley's (I + Q)(I − Q)⁻¹, rotates the input.

    Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", NeurIPS 2023; on the input side and with
    blocks of 32 as in Hugging Face PEFT. Blocks of 32 on attention: 1,541,568 parameters on the SD 1.5 UNet.

    Args:
        block_size: b; where it does not divide the inputs, the nearest size that does, the smaller of two.
        block_count: number of blocks, in place of their size.
        targets: roles or groups.
        neumann_terms: so many terms of the series of (I − Q)⁻¹ in place of a solve (PEFT: 5), R then being orthogonal only
            nearly; 0: exact.
    """

    block_size: Annotated[int, Range(2)] = 32
    block_count: Count | None = None
    targets: Sequence[str] | None = None
    neumann_terms: Whole = 0

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(block_size=4, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        if self.neumann_terms == 1:
            raise PeftError("oft got neumann_terms 1: it must be 2 or more, or 0 for the exact inverse.")
        wanted = self.block_size if self.block_count is None else self.block_count
        for place, _ in plan.places(self.targets, change=Rotation):
            inputs = plan.shape(place)[1]
            size = nearest_divisor(inputs, wanted)
            size = size if self.block_count is None else inputs // size
            if size < 2:
                raise PeftError(f"oft got {wanted} blocks, but {place.module} has {inputs} inputs: ask for fewer.")
            plan.change_weight(place, Rotation(plan.stock(place), place.rows, size, self.neumann_terms))


@cache
def nearest_divisor(size: int, wanted: int) -> int:
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))
