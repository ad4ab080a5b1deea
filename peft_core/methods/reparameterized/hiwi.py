import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.attach import grafts_named
from peft_core.errors import PeftError, nearest
from peft_core.grafts.formed import Formed
from peft_core.grafts.weight_changes import changed_bias
from peft_core.lifecycle import adaptation_of, own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import ACTIVATIONS
from peft_core.parts.factors import add_scaled, new_parameter, rows_of
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class HiWi(Method):
    """HiWi: an adapter reads parameters in place of features, b' = b + σ(b D) U; when training ends b' alone is kept.

    Liao et al., "Parameter-Efficient Fine-Tuning without Introducing New Latency", ACL 2023, on the feed-forward layers. Of a
    bias b (out): D (out, rank), U (rank, out); `of="weight"`: W' = W + σ(W D) U, D (in, rank), which stays as it is and merges.
    No code was released, and what was read of the paper leaves open rank, σ and starts: here 8, GELU, D Kaiming-uniform
    (a = √5), U zero: identity at step 0. `finish` folds D and U into the bias's change, which is what is saved (46,080 on
    ViT-B/16, where 737,280 train).

    Args:
        rank: width of the adapter.
        of: "bias" or "weight".
        activation: σ: gelu, relu, silu, gelu_tanh, quick_gelu or identity.
        folded: whether there is the bias's change alone, as after training.
        targets: roles or groups.
    """

    rank: Count = 8
    of: Literal["bias", "weight"] = "bias"
    activation: str = "gelu"
    folded: bool = False
    targets: Sequence[str] | None = ("fc1", "fc2")
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 737_280), ({"of": "weight"}, 737_280), ({"folded": True}, 46_080),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(rank=2, targets=("fc2",))
        return small, replace(small, folded=True), replace(small, rank=24, of="weight", targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        if self.activation not in ACTIVATIONS:
            raise PeftError(f'unknown activation "{self.activation}"{nearest(self.activation, ACTIVATIONS)}.')
        if self.folded and self.of == "weight":
            raise PeftError("hiwi folds what changes a bias: a change of weights is merged in place of that.")
        kind = OfBias if self.of == "bias" else OfWeight
        for place, _ in plan.places(self.targets, change=kind):
            change = kind(plan.stock(place), place.rows, self.rank, self.activation)
            if self.folded and isinstance(change, OfBias):
                change.fold(None)
            plan.change_weight(place, change)

    def finish(self, model: nn.Module) -> None:
        for module, _, change in grafts_named(model, adaptation_of(model, self).name):
            if isinstance(change, OfBias) and change.difference is None:
                bias = module._parameters["in_proj_bias" if "in_proj_bias" in module._parameters else "bias"]
                assert bias is not None
                change.fold(bias.detach() if change.rows is None else bias.detach()[slice(*change.rows)])

    def as_trained(self, model: nn.Module) -> Self:
        done = any(change.difference is not None for change in own_grafts(model, self, OfBias))
        return replace(self, folded=True) if done and not self.folded else self


class Reading(Formed):
    """x + σ(x D) U of a bias or of a weight's rows."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, size: int, rank: int, activation: str) -> None:
        super().__init__(rows)
        self.d, self.u = new_parameter(weight, size, rank), new_parameter(weight, rank, size)
        nn.init.kaiming_uniform_(self.d.t(), a=math.sqrt(5))
        nn.init.zeros_(self.u)
        self.activation = activation

    def change(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x.to(self.d.dtype) @ self.d) @ self.u


class OfBias(Reading):
    """b' = b + σ(b D) U, or b + difference once it is folded."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, activation: str) -> None:
        super().__init__(weight, rows, rows_of(weight, rows), rank, activation)
        self.register_parameter("difference", None)

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if all(module._parameters.get(name) is None for name in ("bias", "in_proj_bias")):
            return "it has no bias"
        return super().accepts(module, weight, rows)

    def fold(self, bias: Tensor | None) -> None:
        """Keeps what becomes of this bias alone; nothing yet where None, for values that are loaded."""
        change = self.d.new_zeros(len(self.d)) if bias is None else self.change(bias).detach()
        del self.d, self.u
        self.difference = nn.Parameter(change)

    def forward(self, weight: Tensor) -> Tensor:
        return weight

    def bias(self, bias: Tensor | None) -> Tensor | None:
        assert bias is not None
        return (bias + (self.change(bias) if self.difference is None else self.difference)).to(bias.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["OfBias"]) -> Tensor:
        return F.linear(x, weight, changed_bias(bias, deltas, weight))


class OfWeight(Reading):
    """W' = W + σ(W D) U."""

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, activation: str) -> None:
        super().__init__(weight, rows, weight[0].numel(), rank, activation)

    def forward(self, weight: Tensor) -> Tensor:
        return add_scaled(weight, self.change(weight.flatten(1)), 1.0)
