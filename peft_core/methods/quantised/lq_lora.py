import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import is_plain
from peft_core.grafts.stand_in import StandIn
from peft_core.kernels.levels import bits_a_number, to_levels
from peft_core.kernels.quantised import Packed, dense, packed_of
from peft_core.lifecycle import adaptation_of, memory, singly
from peft_core.merging import names_of
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.quantised.residuals import cheapest, from_above
from peft_core.parts.ranked import Ranked
from peft_core.parts.selection.importance import squared_gradients
from peft_core.values import Count, Positive, Rate, Whole, Widths

Form = tuple[int, int, int, int]
"""Bits of a number, of a scale, numbers a scale, scales a scale of scales."""
Found = tuple[Packed, Tensor, Tensor, float]


@dataclass(frozen=True, kw_only=True)
class LQLoRA(Ranked):
    """LQ-LoRA: W ≈ Q + s·B A, Q frozen in few bits, how many a matrix chosen under a budget; A and B train.

    Guo et al., "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model Finetuning", ICLR 2024;
    HanGuo97/lq-lora@c2424b3. s·B A (out, rank)(rank, in) is the leading SVD of W − Q, and Q = quant(W − s·B A), by turns from
    Q = 0 for as long as the error falls; A = L₂/√s, B = L₁/√s. Q's numbers are quantiles of a normal distribution in blocks,
    their scales in `scale_bits` (`kernels/levels.py`). An integer programme gives each matrix the bits and block with the least
    sum of squared errors within the budget. With `samples` errors are weighed by the Fisher information of each number, and the
    SVD by the roots of its row and column means.

    `prepare` decomposes the weights as they stand (a few minutes for ViT-B/16): until then the change is none, afterwards the
    model is near the one that came, not the same. Q stands beside the stock weight, so that the adapter can be taken out and
    its file, which holds Q, loads onto the stock model: pack that with `quantise` where memory matters. Merged, W' = Q + s·B A
    goes into plain weights.

    Differs from the authors: their programme chooses among 432 forms (scales of 2, 3, 4 or 8 bits, too, in groups of 16, 64
    or 256, and their scales in 16 or 32 bits), here among bits × blocks; of the last two turns the better one is kept, not the
    last. Parameters as LoRA's. Defaults: rank 64, alpha 16, 2.75 bits of the paper's smallest models.

    Args:
        budget: bits a number on average over the chosen weights, scales counted; LoRA's own are not.
        bits, block_sizes: what a matrix may have: 2, 3, 4 or 8 bits, and how many numbers share a scale.
        scale_bits: of a scale.
        turns: the most.
        samples: single samples for the Fisher information; 0: every number counts alike.
    """

    rank: Widths = 64
    alpha: Positive | None = 16.0
    dropout: Rate = 0.0
    budget: Positive = 2.75
    bits: Sequence[Count] = (2, 3, 4, 8)
    block_sizes: Sequence[Count] = (16, 32, 64)
    scale_bits: Count = 8
    turns: Count = 100
    samples: Whole = 0

    identity: ClassVar[bool] = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8, "targets": ("q", "v")}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (
            cls(rank=2, alpha=4.0, budget=4.0, bits=(2, 4), block_sizes=(16,), turns=2),
            cls(rank=2, budget=4.5, bits=(3, 8), block_sizes=(32,), samples=2, turns=1, targets=("q", "v", "mlp")),
        )

    def install(self, plan: Plan) -> None:
        if odd := sorted({*self.bits, self.scale_bits} - {2, 3, 4, 8}):
            raise PeftError(f"lq_lora packs 2, 3, 4 or 8 bits, not {odd[0]}: choose other bits.")
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            plan.stand_in(place)
            if not self._forms(plan.shape(place)):
                raise PeftError(
                    f"lq_lora finds no form for the {plan.shape(place)[0]} × {plan.shape(place)[1]} of {place.module}: blocks "
                    f"of {', '.join(map(str, self.block_sizes))} do not divide it, or its rows do not fill bytes."
                )
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout))

    def _forms(self, shape: tuple[int, int]) -> list[Form]:
        """Those that fit a matrix: groups of 256 scales, or as many as divide theirs."""
        found = []
        for bits, size in itertools.product(self.bits, self.block_sizes):
            blocks, odd = divmod(shape[0] * shape[1], size)
            if not odd and shape[1] % (8 if bits == 3 else 8 // bits) == 0:
                found.append((bits, self.scale_bits, size, max(n for n in range(1, 257) if blocks % n == 0)))
        return found

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        sites = list(self._sites(model))
        stock = {id(module): _numbers(module) for module, *_ in sites}
        importance = self._importance(model, sites, losses) if self.samples else {}
        with torch.no_grad():
            weights = [_rows(stock[id(module)], change) for module, _, change in sites]
            scores = [_rows(importance[id(module)], change) if importance else None for module, _, change in sites]
            found = [
                {
                    form: self._decompose(weight, change, form, score)
                    for form in self._forms((weight.shape[0], weight.shape[1]))
                }
                for weight, score, (_, _, change) in zip(weights, scores, sites, strict=True)
            ]
            for best, (_, stand, change) in zip(self._chosen(weights, found), sites, strict=True):
                packed, down, up, _ = best
                stand.put(packed)
                change.A.copy_(down / change.scale**0.5)
                change.B.copy_(up / change.scale**0.5)

    def _sites(self, model: nn.Module) -> Iterator[tuple[nn.Module, StandIn, LowRank]]:
        for module, _, graft in grafts_named(model, adaptation_of(model, self).name):
            if isinstance(graft, StandIn):
                stand = graft
            elif isinstance(graft, LowRank):
                yield module, stand, graft

    def _importance(self, model: nn.Module, sites: list[Any], losses: Iterable[Any]) -> dict[int, Tensor]:
        """Σ (∂L/∂W)² by the modules' ids."""
        owners = {id(module): module._parameters[names_of(module)[0]] for module, *_ in sites}
        if not all(weight is not None and is_plain(weight) for weight in owners.values()):
            raise PeftError(
                "lq_lora weighs errors by gradients of the weights, and these are quantised: set samples to 0."
            )
        tensors: Any = list(owners.values())
        found = squared_gradients([c for _, _, c in sites], tensors, itertools.islice(singly(losses), self.samples))
        return {owner: found[id(weight)] for owner, weight in owners.items()}

    def _decompose(self, weight: Tensor, change: LowRank, form: Form, score: Tensor | None) -> Found:
        shape = (weight.shape[0], weight.shape[1])

        def quantise(rest: Tensor) -> Packed:
            return Packed("levels", shape, to_levels(rest, *form), form)

        return from_above(weight, len(change.A), quantise, self.turns, score)

    def _chosen(self, weights: list[Tensor], found: list[dict[Form, Found]]) -> list[Found]:
        """Of each weight's decompositions the one that the budget leaves."""
        kinds = list(dict.fromkeys(form for forms in found for form in forms))
        errors, sizes = torch.full((2, len(found), len(kinds)), float("inf"), dtype=torch.float64)
        for row, (weight, forms) in enumerate(zip(weights, found, strict=True)):
            for form, (*_, error) in forms.items():
                at = kinds.index(form)
                errors[row, at], sizes[row, at] = error, bits_a_number(*form) * weight.numel()
        total = sum(weight.numel() for weight in weights)
        if (least := sizes.amin(1).sum() / total) > self.budget:
            raise PeftError(
                f"lq_lora's budget of {self.budget:g} bits a number is below {least:.3g}, the least that its bits and "
                "block_sizes take here: raise it, or offer fewer bits or larger blocks."
            )
        return [forms[kinds[at]] for forms, at in zip(found, cheapest(errors, sizes, self.budget * total), strict=True)]

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not memory(model, self).get("started"):
            if not all(stand.names for _, stand, _ in self._sites(model)):
                raise PeftError(
                    "lq_lora decomposes the weights first: call peft_core.lifecycle.prepare(model, losses) before training."
                )
            memory(model, self)["started"] = True


def _numbers(module: nn.Module) -> Tensor:
    packed, weight = packed_of(module), module._parameters[names_of(module)[0]]
    return dense(packed, torch.float32) if packed is not None else weight.detach().float()  # type: ignore[union-attr]


def _rows(weight: Tensor, change: LowRank) -> Tensor:
    return weight if change.rows is None else weight[slice(*change.rows)]
