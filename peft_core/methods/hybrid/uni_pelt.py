import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.parts.lowrank import LowRank
from peft_core.parts.prefixes import add_prefixes, fold_prefixes
from peft_core.values import Count, Widths


@dataclass(frozen=True, kw_only=True)
class UniPELT(Method):
    """UniPELT: LoRA on q and v, a prefix at every attention and an adapter behind the MLP, each weighed by a gate of its own.

    Mao et al., "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", ACL 2022. A gate is one number a
    sample, g(x) = mean over tokens of σ(w·x + b), x what its part receives: q ← W x + g_q(x) B A x (g in the place of
    alpha/rank), v likewise, P_k and P_v times g_p(x) of the attention's input, y ← y + g_a(y) Up(relu(Down y)) for what the MLP
    adds. A is Kaiming-uniform, B zero; the prefix is made by an MLP while it trains; the adapter and its gate N(0, 0.02) with
    biases zero, the other gates as torch makes a linear: morningmoni/UniPELT (53d3c35), whose sizes are the defaults: rank 8,
    10 tokens through an MLP of width 512, bottleneck 48 (D/16 of a base model). Not identical at step 0. 1,410,672
    parameters on ViT-B/16 without that MLP.

    Args:
        rank: one rank, or one a block where 0 means absent.
        tokens: of the prefix, one number, or one a block where 0 means absent (one number with `reparameterize`).
        bottleneck: one width, or one a block where 0 means absent.
        reparameterize: make the prefix by an MLP while it trains.
        hidden: that MLP's width.
    """

    rank: Widths = 8
    tokens: Widths = 10
    bottleneck: Widths = 48
    reparameterize: bool = True
    hidden: Count = 512
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("inputs",)
    not_mergeable: ClassVar[str | None] = "its gates depend on the picture."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"reparameterize": False}, 1_410_672),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(rank=2, tokens=2, bottleneck=16, hidden=5)
        return small, dataclasses.replace(small, reparameterize=False, tower="image")

    def install(self, plan: Plan) -> None:
        add_prefixes(plan, self.tokens, self.hidden if self.reparameterize else None, GatedPrefix)
        for place, rank in plan.places(("q", "v"), self.rank, GatedLowRank):
            plan.change_weight(place, GatedLowRank(plan.stock(place), place.rows, rank, 1.0))
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            plan.add_behind(sublayer, GatedBottleneck(dim, width, plan.options_at(sublayer.norm)))

    def finish(self, model: nn.Module) -> None:
        """Keeps P_k and P_v in place of what they are made by."""
        fold_prefixes(model, self)


class Gate(nn.Linear):
    """x B N D -> B 1 1: the mean over tokens of σ(w·x + b)."""

    def __init__(self, dim: int, options: dict[str, Any], std: float | None = None) -> None:
        super().__init__(dim, 1, **options)
        if std is not None:
            nn.init.normal_(self.weight, std=std)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(super().forward(match(x, self.weight)))
        return gates.flatten(1, -2).mean(1).view(-1, *[1] * (x.dim() - 1))


class GatedLowRank(LowRank):
    """y ← y + g(x) B A x, g of each sample."""

    additive = commutes = rebuilds_input = False
    conv_kernel = None

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float) -> None:
        super().__init__(weight, rows, rank, scale)
        self.gate = Gate(weight.shape[1], dict(device=weight.device, dtype=self.A.dtype))

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if weight.dim() != 2:
            return "its gate is a mean over tokens, which a convolution has not"
        return super().accepts(module, weight, rows)

    @property
    def reads_input(self) -> bool:
        return True

    def forward(self, weight: Tensor) -> Tensor:
        raise PeftError("uni_pelt's LoRA depends on the picture: what wants its changed weight cannot stand on it.")

    def on_input(self, x: Tensor, run) -> Tensor:
        return super().on_input(x, run) * self.gate(x)


class GatedPrefix(nn.Module):
    """P_k and P_v times g(x), each B P W."""

    def __init__(self, make: nn.Module, dim: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.make, self.gate = make, Gate(dim, options)

    def forward(self, x: Tensor) -> list[Tensor]:
        gate = self.gate(x)
        return [values * gate for values in self.make(x)]


class GatedBottleneck(nn.Module):
    """g(y) Up(relu(Down y))."""

    def __init__(self, dim: int, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(dim, width, activation="relu", options=options)
        for layer in (self.bottleneck.down, self.bottleneck.up):
            nn.init.normal_(layer.weight, std=0.02)
        self.gate = Gate(dim, options, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return self.bottleneck(y) * self.gate(y)
