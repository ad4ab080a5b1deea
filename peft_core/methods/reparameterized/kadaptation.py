import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta, match
from peft_core.grafts.shared import Reference
from peft_core.grafts.weight_changes import changed_bias
from peft_core.kernels.kronecker_linear import kronecker_linear, kronecker_sum
from peft_core.method import Method, Plan
from peft_core.parts.factors import add_scaled, new_parameter
from peft_core.values import Count, Positive, Rate


@dataclass(frozen=True, kw_only=True)
class KAdaptation(Method):
    """KAdaptation: W' = W + s·drop(Σ_i (m_i l_iᵀ) ⊗ (v_i u_iᵀ)), b' = b + c; l, m (n, n) shared by all layers, one pair a role.

    He et al., "Parameter-efficient Model Adaptation for Vision Transformers", AAAI 2023. n = 32 terms, u_i (in/n), v_i (out/n)
    a layer's own, c (out) one for all of a block's targets, where they have a bias; s = 160, and single entries of the change
    drop out at 0.5 in training: eric-ai-lab/PEViT, on q and v of CLIP's image tower. As released u and v are both zero, which
    never learns, and v's change reads q's u and v: here u is Xavier-uniform (gain √2), v zero, and each role has its own.
    l, m ~ U(−0.01, 0.01): identity at step 0. The paper chooses the places by their local intrinsic dimension, which its code
    does not. 50,176 parameters on ViT-B/16.

    Args:
        terms: n, which divides the layers' inputs and outputs.
        scale: s.
        dropout: on entries of the change; above 0 training takes the plain path.
        bias: whether c is there.
        targets: roles or groups.
    """

    terms: Count = 32
    scale: Positive = 160.0
    dropout: Rate = 0.5
    bias: bool = True
    targets: Sequence[str] | None = ("q", "v")
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 50_176), ({"bias": False}, 40_960))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(terms=4, scale=1000.0, dropout=0.0), cls(terms=2, scale=1000.0, targets=("proj", "fc1"))

    def install(self, plan: Plan) -> None:
        for place, _ in plan.places(self.targets, change=Terms):
            out, inner = plan.shape(place)
            if out % self.terms or inner % self.terms:
                raise PeftError(
                    f"kadaptation got {self.terms} terms, which do not divide {place.module}, {out} × {inner}."
                )
            weight, tower = plan.stock(place), f"_{place.tower}" if place.tower else ""

            def rule(weight: Tensor = weight) -> nn.Parameter:
                made = new_parameter(weight, self.terms, self.terms)
                return nn.init.uniform_(made, -0.01, 0.01)  # type: ignore[return-value]

            def zeros(weight: Tensor = weight, out: int = out) -> nn.Parameter:
                return nn.init.zeros_(new_parameter(weight, out))  # type: ignore[return-value]

            left, right = (plan.shared(f"{name}{tower}_{place.role}", rule) for name in "lm")
            has_bias = place.bias and plan.model.get_submodule(place.module)._parameters.get(place.bias) is not None
            shift = plan.shared(f"c{tower}_{place.block}_{out}", zeros) if self.bias and has_bias else None
            plan.change_weight(
                place, Terms(weight, place.rows, (out, inner), left, right, shift, self.scale, self.dropout)
            )


class Terms(Delta):
    """W' = W + s·Σ_i (m_i l_iᵀ) ⊗ (v_i u_iᵀ): u (n, in/n), v (n, out/n), l, m (n, n); b' = b + c."""

    additive = commutes = needs_matrix = rebuilds_input = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, shape: tuple[int, int], left: Reference, right: Reference,
                 shift: Reference | None, scale: float, dropout: float):  # fmt: skip
        super().__init__(rows)
        self.rules, self.added, self.scale = (left, right), shift, scale
        terms = len(left())
        self.u, self.v = (
            new_parameter(weight, terms, shape[1] // terms),
            new_parameter(weight, terms, shape[0] // terms),
        )
        bound = math.sqrt(2) * math.sqrt(6 / (1 + self.u.shape[1]))
        nn.init.uniform_(self.u, -bound, bound)
        nn.init.zeros_(self.v)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """w1 (n, n, n) and w2 (n, out/n, in/n)."""
        left, right = (found() for found in self.rules)
        return right.unsqueeze(2) * left.unsqueeze(1), self.v.unsqueeze(2) * self.u.unsqueeze(1)

    def change(self) -> Tensor:
        split = kronecker_sum(*self.factors())
        return split.reshape(split.shape[0] * split.shape[1], -1)

    def forward(self, weight: Tensor) -> Tensor:
        return add_scaled(weight, self.change(), self.scale)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return bias if self.added is None or bias is None else (bias + self.added()).to(bias.dtype)

    @property
    def reads_input(self) -> bool:
        return self.dropout is not None and self.training

    def on_input(self, x: Tensor, run: Callable) -> Tensor:
        change = self.change() * (self.scale * self.factor)
        y = run(match(x, change), change if self.dropout is None else self.dropout(change))
        if self.added is not None:
            shift = self.added() * self.factor
            y = y + (shift if run is F.linear else shift.view(-1, *[1] * (y.dim() - 2)))
        return y

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["Terms"]) -> Tensor:
        return kronecker_linear(x, weight, changed_bias(bias, deltas, weight), deltas)
