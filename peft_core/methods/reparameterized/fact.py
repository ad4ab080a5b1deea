import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.grafts.graft import Delta, match
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.values import Count, Positive, Rate


@dataclass(frozen=True, kw_only=True)
class FacT(Method):
    """FacT: all weights as one tensor of D × D slices, whose change is factored: of each slice W' = W + s·V Σ U.

    Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI 2023. U (rank, D) and
    V (D, rank) are shared by all layers; a weight of 4 D × D (fc1) or D × 4 D (fc2) has four slices. `tt`, tensor train: a
    Σ (rank, rank) for each slice. `tk`, Tucker: Σ_l = C ×₃ P[:, l], C (rank, rank, rank) and a column of P a slice, both
    shared too. U and Σ are Kaiming-uniform (a = √5), C and P Xavier-uniform, V zero: identity at step 0.

    JieShibo/PETL-ViT takes s from 0.01, 0.1, 1, 10, 100 and rank 4 to 16 (tt), 16 or 32 (tk) for each task, and drops out
    what Σ gives at 0.1 (presets fact_tt and fact_tk). Its reshape hands the entries of a fused weight's four Σ on in
    rank-major order, which mixes C's slices; so does this, for its published factors. Where D differs within a model (cross
    attention, hierarchies, two towers) there is a pair U, V for each width; where one side is no multiple of the other the
    weight is one slice. On ViT-B/16: 1536 r + 144 r² (tt; 61,440 at 16), 1536 r + r³ + 144 r (tk; 86,528 at 32).

    Args:
        rank: of all factors.
        form: "tt" or "tk".
        scale: s.
        dropout: on what Σ gives; above 0 training takes the plain path.
        targets: roles or groups.
    """

    rank: Count = 16
    form: Literal["tt", "tk"] = "tt"
    scale: Positive = 1.0
    dropout: Rate = 0.0
    targets: Sequence[str] | None = ("attn", "mlp")
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"rank": 4}, 8_448), ({"rank": 8}, 21_504), ({}, 61_440), ({"rank": 32}, 196_608),
        ({"form": "tk"}, 30_976), ({"form": "tk", "rank": 32}, 86_528), ({"form": "tk", "rank": 64}, 369_664),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=3, scale=2.0), cls(rank=3, form="tk", scale=2.0)

    def install(self, plan: Plan) -> None:
        places = [place for place, _ in plan.places(self.targets, self.rank, Factored)]
        shapes = [slices_of(*plan.shape(place)) for place in places]
        for tower in dict.fromkeys(place.tower for place in places):
            own = [(place, *shape) for place, shape in zip(places, shapes, strict=True) if place.tower == tower]
            total, start = sum(rows * columns for _, rows, columns, *_ in own), 0
            for place, rows, columns, out, inner in own:
                name = f"_{tower}" if tower else ""
                u = _shared(plan, place, f"U{name}_{inner}", _linear, self.rank, inner)
                v = _shared(plan, place, f"V{name}_{out}", nn.init.zeros_, out, self.rank)
                core: nn.Parameter | tuple[Reference, Reference, slice]
                if self.form == "tt":
                    sizes = rows * self.rank, columns * self.rank
                    core = nn.Parameter(_linear(torch.empty(*sizes, **plan.options_at(place.module))))
                else:
                    c = _shared(plan, place, f"C{name}", nn.init.xavier_uniform_, *[self.rank] * 3)
                    p = _shared(plan, place, f"P{name}", nn.init.xavier_uniform_, self.rank, total)
                    core = c, p, slice(start, start := start + rows * columns)
                change = Factored(place.rows, (rows, columns), core, u, v, self.scale, self.dropout)
                plan.change_weight(place, change)


def _shared(plan: Plan, place: Place, name: str, fill: Callable, *shape: int) -> Reference:
    options = plan.options_at(place.module)
    return plan.shared(name, lambda: nn.Parameter(fill(torch.empty(*shape, **options))))


def slices_of(out: int, inner: int) -> tuple[int, int, int, int]:
    """Rows and columns of slices, and a slice's height and width."""
    small = min(out, inner)
    if max(out, inner) % small:
        return 1, 1, out, inner
    return out // small, inner // small, small, small


def _linear(weight: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


class Factored(LowRank):
    """W' = W + s·B A on rows × columns slices, one of the two 1: B = V, A = [Σ₁ U, Σ₂ U, …], or A = U, B = [V Σ₁; V Σ₂; …]."""

    def __init__(self, rows: tuple[int, int] | None, slices: tuple[int, int],
                 core: nn.Parameter | tuple[Reference, Reference, slice], u: Reference, v: Reference, scale: float,
                 dropout: float):  # fmt: skip
        Delta.__init__(self, rows)
        self.slices, self.pair, self.scale = slices, (u, v), scale
        self.core = core if isinstance(core, nn.Parameter) else None
        self.tucker = None if isinstance(core, nn.Parameter) else core
        self.dropout = nn.Dropout(dropout) if dropout else None

    def shared(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (r, D), Σ (rows·r, columns·r), V (D, r)."""
        u, v = (found() for found in self.pair)
        if self.core is not None:
            return u, self.core, v
        c, p, columns = self.tucker  # type: ignore[misc]
        with torch.autocast(u.device.type, enabled=False):
            sigma = (c() @ p()[:, columns]).flatten(1)
        return u, sigma if self.slices[1] > 1 else sigma.t(), v

    def factors(self) -> tuple[Tensor, Tensor]:
        (u, sigma, v), (rows, columns) = self.shared(), self.slices
        if torch.compiler.is_compiling():  # which takes no tensor twice in one call, as q, k and v would hand it on
            u, v = u.clone(), v.clone()
        with torch.autocast(u.device.type, enabled=False):
            if rows > 1:
                return u, (v @ sigma.unflatten(0, (rows, -1))).flatten(0, 1)
            return (sigma.unflatten(1, (columns, -1)) @ u).flatten(1), v

    def on_input(self, x: Tensor, run: Callable) -> Tensor:
        (u, sigma, v), rows = self.shared(), self.slices[0]
        inner = run(match(x, u), u if rows > 1 else self.factors()[0])
        convolves = run is not F.linear and inner.dim() == 4
        inner = inner.movedim(1, -1) if convolves else inner
        inner = F.linear(inner, sigma) if rows > 1 else inner
        inner = inner if self.dropout is None else self.dropout(inner)
        y = F.linear(inner.unflatten(-1, (rows, -1)), v * (self.scale * self.factor)).flatten(-2)
        return y.movedim(-1, 1) if convolves else y
