from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.attach import grafts_named
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.parts.prompts import input_prompts
from peft_core.parts.selection.first_phase import trained_once
from peft_core.parts.tokens.source import Measure, nearness, prompts_of
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class SPoT(Method):
    """SPoT: prompt tuning that starts from the prompt of another task, of several from the nearest one.

    Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL 2022. P (tokens, D) among the first
    block's input, P ← the source's when `lifecycle.prepare` reads it. Of several sources it takes the one that is nearest to
    what P becomes in a short training of its own from U(−0.5, 0.5), which stands for the task as their early checkpoint does
    (10,000 steps there; passes over the data here): `average`, the cosine of the mean tokens, is theirs, and `per_token`, of
    all pairs. `flat` and `distance` are measures of Su et al., "On Transferability of Prompt Tuning for Natural Language
    Processing", NAACL 2022 (thunlp/Prompt-Transferability, 2d15de5), who find the overlap of neurons that prompts activate to
    tell more: `transfer_prompt`. 100 tokens, a constant rate of 0.3 (Adafactor):
    google-research/prompt-tuning (72285ee). Not identical at step 0: tokens take part in attention. 76,800 parameters on
    ViT-B/16.

    Args:
        tokens: how many; as many as the sources have.
        sources: adapter folders, or runs, with prompts at the input of the same backbone; none: a run to start others from.
        measure: of nearness.
        passes: over the losses that `prepare` is given, in the short training; one source needs none.
        first_lr: its learning rate (AdamW).
    """

    tokens: Count = 100
    sources: Sequence[str] = ()
    measure: Measure = "average"
    passes: Count = 3
    first_lr: Positive = 1e-2
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 76_800),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2),)

    def install(self, plan: Plan) -> None:
        for _, paths, stream, values in input_prompts(plan, self.tokens):
            plan.add_tokens(paths, values, stream)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or bool(self.sources))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        """P ← the nearest source's; which one, and how near all are, stays in the method's memory."""
        paths = {id(module): path for path, module in model.named_modules()}
        adaptation = lifecycle.adaptation_of(model, self)
        own = {
            paths[id(module)]: graft.tokens
            for module, _, graft in grafts_named(model, adaptation.name)
            if isinstance(graft, Tokens) and isinstance(graft.tokens, nn.Parameter)
        }
        shape = next(iter(own.values())).shape
        found = {source: prompts_of(source, list(own), shape, self.name) for source in self.sources}
        chosen = self.sources[0]
        if len(found) > 1:
            with trained_once(model, self, losses, self.first_lr, self.passes):
                near = self.near(model, list(own.values()), found, losses)
            chosen = max(near, key=near.__getitem__)
            adaptation.memory["nearness"] = near
        adaptation.memory["source"] = chosen
        with torch.no_grad():
            for prompts, values in zip(own.values(), found[chosen], strict=True):
                prompts.copy_(values)

    def near(
        self, model: nn.Module, own: Sequence[nn.Parameter], found: Mapping[str, list[Tensor]], losses: Iterable[Tensor]
    ) -> dict[str, float]:
        """How near each source is to what the method's own prompts are now, which may be lost."""
        here = torch.cat([prompts.detach() for prompts in own])
        return {source: nearness(here, torch.cat(prompts), self.measure) for source, prompts in found.items()}
