from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft
from peft_core.method import Method, Plan
from peft_core.parts.prompts import uniform_prompts
from peft_core.parts.selection.first_phase import put_back
from peft_core.values import Count, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class SelectivePrompt(Method):
    """Selective prompt tuning: prompts at the input, and new ones in their place before the few blocks that a search finds.

    Zhu and Tan, "SPT: Learning to Selectively Insert Prompts for Better Prompt Tuning", EMNLP 2023, of which there is no code:
    built from its idea. P_0 comes in before the first block. In the search block l receives (1 − a_l) P + a_l P_l in place of
    the prompts P that reach it, a_l = σ(α_l), α_l = 0 at first; `prepare` trains prompts (and head) on the batches 1, 3, 5 …
    and α on those between (DARTS's first order; the paper's own estimate of the gates' gradient and its regularisation are left
    out). The `keep` blocks of the largest α then get new prompts wholly, the others none, and all starts again. P ~ U(−v, v) as
    VPT's. Not identical at step 0: tokens take part in attention. 92,160 parameters on ViT-B/16 in the search, 38,400 behind
    it.

    Args:
        tokens: how many.
        keep: blocks, besides the first, that get new ones.
        passes: over the losses that `prepare` is given.
        first_lr: learning rate of the prompts in the search (AdamW).
        gate_lr: of α (Adam).
    """

    tokens: Count = 10
    keep: Whole = 4
    passes: Count = 5
    first_lr: Positive = 1e-2
    gate_lr: Positive = 1e-2
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 92_160),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2, keep=1, passes=1),)

    def install(self, plan: Plan) -> None:
        for tower, run in plan.runs():
            stream = plan.token_stream(tower)
            paths = [path for _, _, path, _ in plan.chosen_blocks(self.tokens, 1000, tower)]
            first, *others = (uniform_prompts(self.tokens, stream, plan.options_at(path)) for path in paths)
            plan.add_tokens(run, first, stream)
            for path, values in zip(paths[1:], others, strict=True):
                plan.join(path, "replaced", Replaced(values, stream))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        grafts: list[Replaced] = list(lifecycle.own_grafts(model, self, Replaced))
        if len(grafts) <= self.keep:
            return
        trained = [p for p in model.parameters() if p.requires_grad]
        gates = [torch.zeros((), device=g.values.device, dtype=g.values.dtype, requires_grad=True) for g in grafts]
        optimizers = (
            torch.optim.AdamW(trained, lr=self.first_lr, weight_decay=0.0),
            torch.optim.Adam(gates, lr=self.gate_lr),
        )
        taken = 0
        try:
            for graft, gate in zip(grafts, gates, strict=True):
                graft.gate = gate
            with put_back(trained):
                for loss in (loss for _ in range(self.passes) for loss in losses):
                    for optimizer in optimizers:
                        optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizers[taken % 2].step()
                    taken += 1
        finally:
            for graft in grafts:
                graft.gate = None
        if taken < 2:
            raise PeftError(
                "selective_prompt searches by the losses that prepare is given, and was given less than two."
            )
        order = torch.stack([gate.detach() for gate in gates]).argsort(descending=True, stable=True).tolist()
        for number in order[self.keep :]:
            grafts[number].resize(0)


class Replaced(Graft):
    """P_l in place of the tokens behind the prefix, where there are such; within a search (1 − σ(gate)) P + σ(gate) P_l."""

    scalable = False
    order = -1  # right behind the tokens themselves, before other methods' come in

    def __init__(self, values: nn.Parameter, stream: Any) -> None:
        super().__init__()
        self.values, self.prefix, self.count = values, stream.prefix, len(values)
        self.arg, self.output = stream.arg, stream.output
        self.gate: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        if not len(self.values):
            return x
        end = self.prefix + self.count
        tokens = self.values.expand(x.shape[0], -1, -1).to(x.dtype)
        if self.gate is not None:
            tokens = torch.lerp(x[:, self.prefix : end], tokens, torch.sigmoid(self.gate).to(x.dtype))
        return torch.cat((x[:, : self.prefix], tokens, x[:, end:]), 1)

    def resize(self, count: int) -> None:
        """The parameter keeps its identity."""
        if count != len(self.values):
            self.values.data, self.values.grad = self.values.new_zeros(count, self.values.shape[1]), None

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if "values" in tensors and len(tensors["values"]) in (0, self.count):
            self.resize(len(tensors["values"]))
