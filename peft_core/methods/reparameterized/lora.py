import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.weight_changes import watching
from peft_core.method import Method, Plan
from peft_core.parts import starts
from peft_core.parts.factors import rows_of
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Rate

FROM_WEIGHT = {"pissa": starts.principal, "olora": starts.orthonormal, "orthogonal": starts.disjoint}
CHANGES: dict[str, Any] = {
    "kaiming": LowRank, "mica": starts.FrozenUp, "eva": starts.FromInputs, "lora_ga": starts.Anchored,
} | dict.fromkeys(FROM_WEIGHT, starts.Anchored)  # fmt: skip
THRESHOLD, GAMMA = 0.99, 16.0
"""Of EVA (τ: when components have settled) and of LoRA-GA (stable_gamma), as Hugging Face PEFT has them."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Ranked):
    """LoRA: W' = W + s·B A with A (rank, in), B (out, rank), s = alpha/rank (alpha/√rank with `rs`, 1 without alpha).

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; `rs`: Kalajdzievski, "A Rank Stabilization
    Scaling Factor for Fine-Tuning with LoRA", 2023. A is Kaiming-uniform (a = √5), B is zero, as in microsoft/LoRA.
    Rank 8 on q, v (the paper's choice and the default) inserts 294,912 parameters on ViT-B/16. A convolution's weight counts
    as (out, in·kh·kw): A is a convolution to `rank` channels, B a 1 × 1 one. On the SD 1.5 UNet rank 4 inserts 797,184 on
    attention, 4,009,984 with the feed-forward, proj_io and conv.

    Other starts, with the formulas of Hugging Face PEFT 0.21. Where B A is not zero W' = W + s·(B A − B₀ A₀): the same model
    as on the residual weight W − s·B₀ A₀ of the authors, equal to the frozen one to the last bit at step 0; A₀ and B₀ are
    saved, so that the adapter loads on the stock weights.
        pissa: the largest singular triplets of W (Meng et al., "PiSSA", NeurIPS 2024; its recipe has no weight decay).
        olora: the first columns of Q and rows of R, W = Q R (Büyükakyüz, "OLoRA", 2024).
        orthogonal: random, B A = 0, of an even rank (datta0.github.io/posts/rethink-lora-init).
        mica: B the left singular vectors of the smallest singular values, frozen; A zero ("MiCA", arXiv 2604.01694).
        eva: A the principal components of the layer's inputs, B zero (Paischer et al., "Parameter Efficient Fine-tuning via
            Explained Variance Adaptation", 2024); every place keeps its rank (ρ = 1: PEFT redistributes up to 2 · rank).
        lora_ga: from the singular vectors of ∂L/∂W, A the first r, B the next r ("ArB2r"), scaled "stable" (Wang, Yu, Li,
            "LoRA-GA", NeurIPS 2024).

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: float; the scale does not depend on the rank where it is None.
        dropout: on the change's own input; above 0 training takes the plain path, y = W x + s·B A drop(x).
        targets: roles, e.g. `q k v qkv proj fc1 fc2`, or groups `attn cross_attn mlp`.
        rs: rank-stabilised scale.
        init: where the factors start; eva and lora_ga read data first (`lifecycle.prepare`).
        start_batches: the most batches that eva and lora_ga read; eva stops as soon as its components have settled.
    """

    dropout: Rate = 0.0
    init: Literal["kaiming", "pissa", "olora", "orthogonal", "mica", "eva", "lora_ga"] = "kaiming"
    start_batches: Count = 32
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"init": "pissa", "targets": ("qkv",)}, 294_912),
        ({"init": "mica", "targets": ("qkv",)}, 73_728),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        inits: Any = [init for init in CHANGES if init != "kaiming"]
        # what reads inputs wants layers that are called
        named = [cls(rank=2, init=i, targets=("proj", "mlp") if i == "eva" else ("attn", "mlp")) for i in inits]
        return cls(rank=2), cls(rank=2, alpha=3.0, rs=True, targets=("attn", "mlp")), *named

    def install(self, plan: Plan) -> None:
        kind = CHANGES[self.init]
        for place, rank in plan.places(self.targets, self.rank, kind):
            if self.init == "eva" and not place.called:
                raise PeftError(
                    f"lora cannot start from the inputs of {place.module}, whose weight is read without calling it."
                )
            weight = plan.stock(place)
            change: Any = kind(weight, place.rows, rank, self.scale(rank), self.dropout)
            if self.init in FROM_WEIGHT:
                change.start(*FROM_WEIGHT[self.init](_matrix(weight, place.rows, change), rank, self.scale(rank)))
            elif isinstance(change, starts.FrozenUp):
                change.start(starts.minor(_matrix(weight, place.rows, change), rank))
            plan.change_weight(place, change)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call not in ("prepare", "after_step") or self.init in ("eva", "lora_ga"))

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        few = itertools.islice(iter(losses), self.start_batches)
        if self.init == "eva":
            starts.components_of(list(lifecycle.own_grafts(model, self, LowRank)), watching, few, THRESHOLD)
        if self.init == "lora_ga":
            for change, gradient in starts.with_gradients(model, self, few):
                part = _matrix(gradient, change.rows, change)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)  # of svd_lowrank's sketch
                    change.start(*starts.along_gradient(part, len(change.A), GAMMA))

    def after_step(self, model: nn.Module, progress: float) -> None:
        if self.init not in ("eva", "lora_ga") or lifecycle.memory(model, self).get("started"):
            return
        if not any(change.A.any() for change in lifecycle.own_grafts(model, self, LowRank)):
            raise PeftError(
                f'lora with init="{self.init}" starts from data: call peft_core.lifecycle.prepare(model, losses) before training.'
            )
        lifecycle.memory(model, self)["started"] = True


def _matrix(weight: Tensor, rows: tuple[int, int] | None, change: LowRank) -> Tensor:
    """The place's own rows (out, in·kh·kw), in the factors' precision."""
    own = weight.detach() if rows is None else weight.detach()[slice(*rows)]
    return own.to(change.A.dtype).reshape(rows_of(weight, rows), -1)
