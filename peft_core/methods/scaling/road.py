from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.kernels.turned_linear import Part, can_be_undone, turned, turned_linear, turned_rows
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.values import Range

LINEARS = ("q", "k", "v", "proj", "cross_q", "cross_k", "cross_v", "cross_proj", "fc1", "fc2")


@dataclass(frozen=True, kw_only=True)
class RoAd(Method):
    """RoAd: y ← R y behind a linear; R turns pairs of features by θ and scales them by α.

    Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability", NeurIPS
    2024. In groups of g features feature i is paired with i + g/2: (y1, y2) ← (α cos θ·y1 − α sin θ·y2, α sin θ·y1 +
    α cos θ·y2). road_1 has one θ and one α a pair, out in all; road_2 one a feature, 2 out; road_4 θ and α of
    their own for cosine and sine, 4 out. θ 0, α 1: identity at step 0, as in Hugging Face PEFT, whose order of the pairs,
    defaults and parameters these are. Merges: W' = R W, b' = R b. road_1 on all linears inserts 82,944 parameters on
    ViT-B/16, on q, k, v 27,648.

    Args:
        variant: road_1, road_2 or road_4.
        group_size: g, even; it divides the outputs of every linear that is turned.
        targets: roles; all linears of attention and MLP where None, but for EVA's fused qkv, whose bias stands outside it.
    """

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: Annotated[int, Range(2, multiple=2)] = 64
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 82_944), ({"targets": ("q", "k", "v")}, 27_648), ({"variant": "road_4", "targets": ("qkv",)}, 110_592),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return tuple(cls(variant=variant, group_size=4) for variant in ("road_1", "road_2", "road_4"))  # type: ignore

    def install(self, plan: Plan) -> None:
        for place in plan.biased(self.targets, LINEARS, Turn):
            weight = plan.stock(place)
            out = rows_of(weight, place.rows)
            if out % self.group_size:
                fits = [size for size in (64, 32, 16, 8, 4, 2) if out % size == 0]
                raise PeftError(
                    f"road cannot split the {out} outputs of {place.role} at {place.module} into groups of {self.group_size}: "
                    + (f"set group_size to {fits[0]}." if fits else f"leave {place.role} out of targets.")
                )
            change = Turn(weight, place.rows, self.variant, self.group_size)
            change.keeps_output = place.role != "patch_embed"  # positions may be added to it in place
            plan.change_weight(place, change)


class Turn(Delta):
    """W' = R W, b' = R b. theta and alpha (out/2, out or 2 out), starting at 0 and 1."""

    needs_matrix = True
    keeps_output = True
    """False where the model may write over what the module gives."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, variant: str, group: int):
        super().__init__(rows)
        size = rows_of(weight, rows) * {"road_1": 1, "road_2": 2, "road_4": 4}[variant] // 2
        self.theta, self.alpha = new_parameter(weight, size), new_parameter(weight, size)
        self.variant, self.pairs = variant, group // 2
        nn.init.zeros_(self.theta)
        nn.init.ones_(self.alpha)

    def columns(self) -> tuple[Tensor, Tensor]:
        """What y and its turned pairs are multiplied by: two vectors (groups, 2, g/2)."""
        theta, alpha = self.theta.view(-1, self.pairs), self.alpha.view(-1, self.pairs)
        if self.variant == "road_4":  # of each group the first half is of the cosine, the second of the sine
            (theta, sine), (alpha, other) = (t.view(-1, 2, 2 * self.pairs).unbind(1) for t in (theta, alpha))
            return tuple(t.view(-1, 2, self.pairs) for t in (alpha * theta.cos(), other * sine.sin()))  # type: ignore
        first, second = alpha * theta.cos(), alpha * theta.sin()
        if self.variant == "road_1":
            first, second = first.repeat_interleave(2, 0), second.repeat_interleave(2, 0)
        return first.view(-1, 2, self.pairs), second.view(-1, 2, self.pairs)

    def can_be_undone(self) -> bool:
        return self.once_a_step((self.theta, self.alpha), None, lambda: can_be_undone(*self.columns()))

    def forward(self, weight: Tensor) -> Tensor:
        return turned_rows(weight.flatten(1), *self.columns()).view(weight.shape).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else turned(bias, *self.columns()).to(bias.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["Turn"]) -> Tensor:
        """W' and y alone are kept; else y is turned in place of W, without a dense gradient."""
        spans = sorted(delta.rows or (0, len(weight)) for delta in deltas)
        apart = all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False))
        trains = weight.requires_grad or (bias is not None and bias.requires_grad)
        whole = all(delta.factor == 1.0 and delta.keeps_output for delta in deltas)
        plain = torch.compiler.is_compiling() or x.is_meta or not x.numel()
        if apart and whole and not trains and not plain and all(delta.can_be_undone() for delta in deltas):
            columns = [column for delta in deltas for column in delta.columns()]
            return turned_linear(x, weight, bias, [Part(delta.rows, delta.pairs) for delta in deltas], columns)
        y = F.linear(x, weight, bias)
        for delta in deltas:
            start, stop = delta.rows or (0, weight.shape[0])
            part = y[..., start:stop]
            new = turned(part, *delta.columns()).to(y.dtype)
            new = new if delta.factor == 1.0 else torch.lerp(part, new, delta.factor)
            y = new if delta.rows is None else torch.cat((y[..., :start], new, y[..., stop:]), -1)
        return y
