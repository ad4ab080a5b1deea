import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import formed_linear
from peft_core.grafts.graft import Delta
from peft_core.kernels.formed import mapped
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.kernels.twice import transforms_are_active
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.values import Widths


@dataclass(frozen=True, kw_only=True)
class HRA(Method):
    """HRA: W' = W H₁ H₂ … H_r, reflections H_i = I − 2 u_i u_iᵀ/‖u_i‖² of the inputs: orthogonal, and a change of rank r.

    Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation", NeurIPS
    2024. u (rank, in) starts in equal pairs, Kaiming-uniform (a = √5) as in Hugging Face PEFT, whose reflections undo each
    other: identity at step 0. No reflection is formed. With unit vectors a pair is I + x₁ y₁ᵀ + x₂ y₂ᵀ, x₁ = u₁, x₂ = u₂ − u₁,
    y₁ = 4 h u₁ + (2 + 4 h) x₂, y₂ = −2 u₂, h = u₁ᵀ x₂, where one of each product is zero at the start; all pairs are
    I + Xᵀ S Y with S⁻¹ = I − (Y Xᵀ of earlier with later pairs). So W' is W and a low-rank change. The paper's penalty on
    the reflections' angles and its Gram–Schmidt form (PEFT's apply_GS) are not here. Rank 8 on q, v: 147,456 parameters on
    ViT-B/16.

    Args:
        rank: r, even; one rank, or one a block where 0 means absent.
        targets: roles or groups.
    """

    rank: Widths = 8
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 147_456), ({"targets": ("qkv",)}, 73_728), ({"targets": ("qkv", "proj", "fc1", "fc2")}, 516_096),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=4, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Reflections):
            if rank % 2:
                raise PeftError(f"hra got the rank {rank}: its reflections start in pairs, so it must be even.")
            plan.change_weight(place, Reflections(plan.stock(place), place.rows, rank))


class _Low(NamedTuple):
    """What `lowrank_linear` asks of a change."""

    pair: tuple[Tensor, Tensor]
    rows: tuple[int, int] | None
    scale: float = 1.0
    factor: float = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.pair


def _seen(x: Tensor, weight: Tensor) -> Tensor:
    """W Xᵀ of a weight in 16 bits, of which no wider copy is kept."""
    return weight.to(x.dtype) @ x.t()


def _seen_back(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    of_weight = (grad @ x).to(weight.dtype) if weight.requires_grad else None
    return grad.t() @ weight.to(grad.dtype), of_weight


class Reflections(Delta):
    """W' = W + (W Xᵀ S) Y over a convolution's in·kh·kw inputs, too."""

    needs_matrix = True
    rebuilds_input = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int):
        super().__init__(rows)
        self.u = new_parameter(weight, rank, weight[0].numel())
        half = torch.empty_like(self.u[::2].t())
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))  # as PEFT, whose u stand in columns
        with torch.no_grad():
            self.u.copy_(half.t().repeat_interleave(2, dim=0))

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of the change of a weight (out, in)."""
        with torch.autocast(weight.device.type, enabled=False):
            unit = F.normalize(self.u.to(torch.promote_types(self.u.dtype, torch.float32)), dim=1, eps=0.0)
            one, apart = unit[::2], unit[1::2] - unit[::2]
            along = (one * apart).sum(1, keepdim=True)
            x = torch.stack((one, apart), 1).flatten(0, 1)
            y = torch.stack((4 * along * one + (2 + 4 * along) * apart, -2 * (one + apart)), 1).flatten(0, 1)
            pair = torch.arange(len(x), device=x.device) // 2
            inverse = torch.eye(len(x), device=x.device, dtype=x.dtype) - (y @ x.t()) * (pair[:, None] < pair)
            plain = weight.dtype == x.dtype or transforms_are_active()
            seen = weight.to(x.dtype) @ x.t() if plain else mapped(x, _seen, weight, back=_seen_back)
            return y, torch.linalg.solve_triangular(inverse, seen, upper=True, left=False, unitriangular=True)

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        a, b = self.pair(flat)
        return torch.addmm(flat.to(a.dtype), b, a).view(weight.shape).to(weight.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["Reflections"]) -> Tensor:
        spans = [delta.rows or (0, len(weight)) for delta in deltas]
        apart = all(one[1] <= two[0] for one, two in zip(sorted(spans), sorted(spans)[1:], strict=False))
        if not apart or any(delta.factor != 1.0 for delta in deltas) or weight.requires_grad:
            return formed_linear(x, weight, bias, deltas)
        return lowrank_linear(
            x,
            weight,
            bias,
            [_Low(d.pair(weight[slice(*span)]), d.rows) for d, span in zip(deltas, spans, strict=True)],
        )
