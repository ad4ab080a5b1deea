from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.grafts.graft import Delta, match
from peft_core.kernels.summed_linear import summed, summed_linear
from peft_core.method import Method, Plan
from peft_core.parts.factors import add_scaled, new_parameter, rows_of
from peft_core.values import Count, Widths


@dataclass(frozen=True, kw_only=True)
class MiSS(Method):
    """MiSS: y ← y + Mᵀ Σ_g x_g over the input's pieces x_g of r features: W' = W + [Mᵀ Mᵀ …], M (r, out).

    Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", 2024 (Bone in its first
    versions); rank 64 as in Hugging Face PEFT. M is zero: identity at step 0. Where r does not divide the inputs the last
    piece is shorter. `mini`: M (r, mini) stands side by side along the outputs. `bat`: each r × r block of W is changed by its
    row's own M_o (r, r), W' = W + W M_o + M_o; it depends on W, and trains by the dense gradient. On q, v at 64: 1,179,648
    parameters on ViT-B/16; 1,769,472 on the fused qkv.

    Args:
        rank: r; one rank, or one a block where 0 means absent.
        form: "shared", "mini" or "bat".
        mini: columns of M in the form mini; they divide the outputs.
        targets: roles or groups.
    """

    rank: Widths = 64
    form: Literal["shared", "mini", "bat"] = "shared"
    mini: Count = 1
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 1_179_648), ({"targets": ("qkv",)}, 1_769_472), ({"targets": ("qkv", "proj", "fc1", "fc2")}, 5_308_416),
        ({"form": "bat"}, 1_179_648), ({"form": "mini", "mini": 64}, 98_304),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(rank=4, targets=("attn", "mlp"))
        return small, replace(small, rank=5), replace(small, form="mini", mini=4), replace(small, form="bat")

    def install(self, plan: Plan) -> None:
        kind = Blocks if self.form == "bat" else Shards
        for place, rank in plan.places(self.targets, self.rank, kind):
            out, inner = plan.shape(place)
            if self.form == "bat" and (out % rank or inner % rank):
                raise PeftError(
                    f"miss got the rank {rank}, which does not cut {place.module}, {out} × {inner}, into blocks."
                )
            if self.form == "mini" and out % self.mini:
                raise PeftError(
                    f"miss got mini {self.mini}, which does not divide the {out} outputs of {place.module}."
                )
            weight = plan.stock(place)
            if self.form == "bat":
                plan.change_weight(place, Blocks(weight, place.rows, rank))
            else:
                columns = self.mini if self.form == "mini" else out
                plan.change_weight(place, Shards(weight, place.rows, (out, inner), rank, columns))


class Shards(Delta):
    """W' = W + [Mᵀ Mᵀ …], M (r, columns), repeated along the outputs too where it has fewer columns."""

    additive = commutes = needs_matrix = rebuilds_input = True
    kernel = staticmethod(summed_linear)

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, shape: tuple[int, int], rank: int, columns: int):
        super().__init__(rows)
        self.m = new_parameter(weight, rank, columns)
        self.times, self.inner = shape[0] // columns, shape[1]
        nn.init.zeros_(self.m)

    def up(self) -> Tensor:
        """(out, r)"""
        return (self.m if self.times == 1 else self.m.repeat(1, self.times)).t()

    def forward(self, weight: Tensor) -> Tensor:
        return add_scaled(weight, self.tiled(self.up()), 1.0)

    def tiled(self, piece: Tensor) -> Tensor:
        """(…, r) again and again along the inputs."""
        return piece.repeat(1, -(-self.inner // len(self.m)))[:, : self.inner]

    def on_input(self, x: Tensor, run: Callable) -> Tensor:
        rank = len(self.m)
        if run is F.linear:
            return F.linear(summed(match(x, self.m), rank), self.up() * self.factor)
        sums = self.tiled(torch.eye(rank, device=self.m.device, dtype=self.m.dtype))
        y = F.linear(run(match(x, self.m), sums).movedim(1, -1), self.up() * self.factor)
        return y.movedim(-1, 1)


class Blocks(Formed):
    """W' = W + W M_o + M_o on each r × r block of W, M (out/r, r, r)."""

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int):
        super().__init__(rows)
        self.m = new_parameter(weight, rows_of(weight, rows) // rank, rank, rank)
        nn.init.zeros_(self.m)

    def forward(self, weight: Tensor) -> Tensor:
        rank, flat = self.m.shape[1], weight.to(self.m.dtype).reshape(len(self.m), -1, self.m.shape[1])  # o r·i r
        new = torch.baddbmm(flat, flat, self.m).view(len(self.m), rank, -1, rank) + self.m.unsqueeze(2)  # o r i r
        return new.view(weight.shape).to(weight.dtype)
