from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.kernels.frozen_down import frozen_down_linear
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked


class FrozenDown(LowRank):
    """W' = W + s·B A with a frozen A, whose product with the input is all that a linear keeps for backward."""

    rebuilds_input = False

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float):
        super().__init__(weight, rows, rank, scale)
        down = self.A.detach()
        del self.A
        self.register_buffer("A", down)

    @torch.no_grad()
    def rescale_gradient(self) -> None:
        """g ← g (A Aᵀ + 1e-8 I)⁻¹ / s²: of all steps of B the one whose change of W is nearest to −∂L/∂W."""
        if self.B.grad is None:
            return
        down: Any = self.A
        inverse = torch.linalg.pinv(down @ down.t() + 1e-8 * torch.eye(len(down), device=down.device, dtype=down.dtype))
        # rows of B may be sharded, and each is scaled by itself
        gradient: Any = self.B.grad.to_local() if hasattr(self.B.grad, "to_local") else self.B.grad  # type: ignore[attr-defined]
        gradient.copy_(gradient @ (inverse / self.scale**2).to(gradient.dtype))

    kernel = staticmethod(frozen_down_linear)


@dataclass(frozen=True, kw_only=True)
class LoRAFA(Ranked):
    """LoRA-FA: LoRA whose A stays at its start, W' = W + s·B A; B (out, rank) alone learns.

    Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", 2023. A (rank, in),
    Kaiming-uniform (a = √5), is saved with the adapter and trains not; B is zero: identity at step 0. A linear keeps A x for
    backward and no x. `rescale`: before each optimiser step B's gradient is multiplied by (A Aᵀ + 1e-8 I)⁻¹/s², as the
    LoraFAOptimizer of Hugging Face PEFT does, which then runs AdamW (lr 1e-3, ε 1e-6 there); a loop of one's own calls
    `lifecycle.before_step`. Rank 8 on q, v: 147,456 parameters on ViT-B/16.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        rescale: the gradient of B as above.
    """

    rescale: bool = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 147_456),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, FrozenDown):
            plan.change_weight(place, FrozenDown(plan.stock(place), place.rows, rank, self.scale(rank)))

    def before_step(self, model: nn.Module) -> None:
        for change in lifecycle.own_grafts(model, self, FrozenDown) if self.rescale else ():
            change.rescale_gradient()
