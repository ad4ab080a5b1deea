from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.anatomies import anatomy_of
from peft_core.attach import is_inserted
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_bias
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.kernels.quantised import packed_linear
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.selection.bilevel import search
from peft_core.parts.selection.first_phase import put_back
from peft_core.parts.selection.importance import has_bias
from peft_core.parts.selection.structure import Structure, open_gates, pick, probabilities
from peft_core.stock import find_heads
from peft_core.values import Count, Positive, Rate

LINEARS = ("q", "k", "v", "proj", "fc1", "fc2")


@dataclass(frozen=True, kw_only=True)
class S3PET(Method):
    """S3PET: of rank-1 LoRA, shifts of biases and changes of norms at every place, a search keeps what a budget allows.

    Hu et al., "Sparse Structure Search for Delta Tuning", NeurIPS 2022. Each structure i, of n_i parameters, is weighed by
        z_i = σ(log(u p_i / ((1 − u)(1 − p_i)))),  u ~ U(0, 1),  p_i = σ((α_i − ζ)/β),
    where ζ is solved for Σ p_i n_i = budget, whose gradient is left out but for p ← p · sg(Σ p)/Σ p. `prepare` searches: half
    of the batches train what is inserted and the head, the other half α (from 0) through one step of the weights. Then
    structures are taken by falling p, each that still fits, so that the budget is never exceeded; everything starts again as
    it was, and training is that of what was taken: the others are gone from model and file. Structures: B A at every linear
    (A Kaiming-uniform, B zero), t in b' = b + t, and in norms w' = w + t too, t zero: identical at step 0. As in
    thunlp/S3Delta (c8fbd09): β 1, AdamW 3e-4 for weights and 0.1 for α, both falling to 0, gradients clipped at 2, 15 epochs of
    batches of 32, budgets of 0.35 to 1.39 in ten thousand (S3PET-M; `space: lora` is S3PET-L), then 15 epochs anew. There
    pictures are split once, here each pass splits its batches; weights step by the loss that α looked through, not by a further
    draw; rates fall by the epoch. On ViT-B/16 287,232 parameters before the search, of which 11,926 or fewer are kept.

    Args:
        share: of the model's parameters that may be kept, the head apart.
        parameters: that number itself, in place of a share.
        space: all structures, or rank-1 LoRA alone.
        beta: β.
        search_epochs: passes of the search over the data.
        search_lr: of the weights in the search, and the length of the step that α looks through.
        alpha_lr: of α.
        held_out: the share of the batches that α learns from.
    """

    share: Rate = 1.39e-4
    parameters: Count | None = None
    space: Literal["mixed", "lora"] = "mixed"
    beta: Positive = 1.0
    search_epochs: Count = 15
    search_lr: Positive = 3e-4
    alpha_lr: Positive = 0.1
    held_out: Rate = 0.5
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 287_232), ({"space": "lora"}, 165_888))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(parameters=700, search_epochs=2, alpha_lr=1.0), cls(parameters=700, search_epochs=1, space="lora")

    def install(self, plan: Plan) -> None:
        known, mixed = plan.anatomy.roles(), self.space == "mixed"
        linears = [role for role in LINEARS if role in known]
        for place, _ in plan.places(linears, change=OfLinear):
            plan.change_weight(place, OfLinear(plan.stock(place), place.rows, mixed and has_bias(plan, place)))
        norms = [role for role in ("norm1", "norm2", "norm") if role in known and mixed]
        for place, _ in plan.places(norms) if norms else ():
            plan.change_weight(place, OfNorm(plan.stock(place), place.rows, has_bias(plan, place)))
        made = [graft for _, _, graft in plan.grafts if isinstance(graft, Structure)]
        least = min(size for graft in made for size in graft.sizes().values())
        if self.budget(plan.model) < least:
            raise PeftError(
                f"s3pet's budget of {self.budget(plan.model):,} parameters is below its smallest structure, of {least:,}: "
                f"give more, e.g. parameters={10 * least}."
            )

    def budget(self, model: nn.Module) -> int:
        if self.parameters is not None:
            return self.parameters
        heads = tuple(f"{path}." for path in find_heads(model, anatomy_of(model)))
        stock = ((key, p) for key, p in model.named_parameters() if not is_inserted(key) and not key.startswith(heads))
        return int(self.share * sum(p.numel() for _, p in stock))

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        changes: list[Any] = list(lifecycle.own_grafts(model, self, Structure))
        weights = [p for p in model.parameters() if p.requires_grad]
        sizes = open_gates(changes)
        alphas = torch.zeros(len(sizes), device=weights[0].device, requires_grad=True)
        counts, budget = torch.tensor(sizes, device=alphas.device), self.budget(model)
        outer = torch.optim.AdamW([alphas], lr=self.alpha_lr, weight_decay=0.0)
        inner = torch.optim.AdamW(weights, lr=self.search_lr, weight_decay=0.0)
        uniform = torch.zeros_like(alphas)

        def draw(new: bool) -> None:
            if new:
                uniform.uniform_(1e-7, 1 - 1e-7)
            p = probabilities(alphas, counts, budget, self.beta)
            z = torch.sigmoid((uniform * p / ((1 - uniform) * (1 - p))).log())
            open_gates(changes, z)

        try:
            with put_back(weights):
                for epoch in range(self.search_epochs):
                    for optimizer, lr in ((inner, self.search_lr), (outer, self.alpha_lr)):
                        optimizer.param_groups[0]["lr"] = lr * (1 - epoch / self.search_epochs)
                    search(losses, weights, [alphas], inner, outer, self.search_lr, self.held_out, draw, clip=2.0)
        finally:
            open_gates(changes)
        with torch.no_grad():
            taken = pick(probabilities(alphas, counts, budget, self.beta), sizes, budget)
        start = 0
        for change in changes:
            end = start + len(change.sizes())
            change.keep([name for name, kept in zip(change.sizes(), taken[start:end], strict=True) if kept])
            start = end

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not all(change.settled for change in lifecycle.own_grafts(model, self, Structure)):
            raise PeftError(
                "s3pet searches its structure in data: call peft_core.lifecycle.prepare(model, losses) before training."
            )


class OfLinear(Structure, LowRank):
    """W' = W + z B A, b' = b + z' t."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"lora": ("A", "B"), "bias": ("t",)}

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, biased: bool):
        LowRank.__init__(self, weight, rows, 1, 1.0)
        self.t = nn.Parameter(self.B.new_zeros(len(self.B) if biased else 0))

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        return "it is a convolution" if weight.dim() > 2 else super().accepts(module, weight, rows)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B * self.gate("lora")

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return self.shifted(bias, self.t, "bias")

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Any]) -> Tensor:
        bias, ranked = changed_bias(bias, deltas, weight), [delta for delta in deltas if len(delta.A)]
        return lowrank_linear(x, weight, bias, ranked) if ranked else F.linear(x, weight, bias)

    @staticmethod
    def packed_kernel(x: Tensor, packed: Any, bias: Tensor | None, deltas: list[Any]) -> Tensor:
        return packed_linear(x, packed, changed_bias(bias, deltas, x.dtype), deltas)


class OfNorm(Structure, Delta):
    """w' = w + z t_w, b' = b + z' t_b."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"norm": ("w",), "bias": ("t",)}

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, biased: bool):
        Delta.__init__(self, rows)
        options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.w = nn.Parameter(torch.zeros(len(weight), **options))
        self.t = nn.Parameter(torch.zeros(len(weight) if biased else 0, **options))

    def forward(self, weight: Tensor) -> Tensor:
        return self.shifted(weight, self.w, "norm")  # type: ignore[return-value]

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return self.shifted(bias, self.t, "bias")
