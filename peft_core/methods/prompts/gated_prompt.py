from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.calls import state
from peft_core.grafts.graft import Delta, Graft
from peft_core.method import Method, Plan
from peft_core.parts.prompts import uniform_prompts
from peft_core.values import Count, Range, Rate

LEAST, MOST = 0.01, 10.0
"""Between which a temperature stays."""


@dataclass(frozen=True, kw_only=True)
class GatedPrompt(Method):
    """Gated prompt tuning: shallow prompts of which a learnt gate decides how much each block changes them.

    Yoo et al., "Improving Visual Prompt Tuning for Self-supervised Vision Transformers", ICML 2023. Behind block i, all but the
    last: P ← σ(g_i) P_out + (1 − σ(g_i)) P_in; and every block attends at a temperature of its own, softmax(q kᵀ / (τ_i √d)), τ_i
    kept within [0.01, 10]. P as VPT's, g_i = −gate, τ_i = 1; the frozen model's dropout and drop path are off:
    ryongithub/GatedPromptTuning (dd7d1ea), written for MAE and MoCo-v3. Not identical at step 0: tokens take part in attention.
    76,823 parameters on ViT-B/16.

    Args:
        tokens: how many.
        gate: minus the start of g; 10 as there by default, 5 in its runs.
        temperature: whether τ is learnt.
        dropout: on the prompts, a mask a sample.
    """

    tokens: Count = 100
    gate: Annotated[float, Range(-30, 30)] = 10.0
    temperature: bool = True
    dropout: Rate = 0.0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    silences_dropout: ClassVar[bool] = True
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 76_823), ({"temperature": False}, 76_811))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2, gate=1.0, temperature=False), cls(tokens=2, gate=1.0, tower="image")

    def install(self, plan: Plan) -> None:
        if self.blocks is not None:
            raise PeftError("gated_prompt works on all blocks of a tower: leave `blocks` out.")
        for tower, paths in plan.towers():
            stream, options = plan.token_stream(tower), plan.options_at(paths[0])
            plan.add_tokens(paths, uniform_prompts(self.tokens, stream, options), stream, self.dropout)
            for path in paths[:-1]:
                plan.join(path, "gate", Gate(self.gate, self.tokens, stream, options))
        if self.temperature:
            for place, _ in plan.places(("q",), change=Temperature):
                attention = plan.model.get_submodule(place.module.rpartition(".")[0])
                if any(
                    "norm" in name and not isinstance(child, nn.Identity) for name, child in attention.named_children()
                ):
                    raise PeftError(
                        "gated_prompt learns no temperature of queries that are normed: set temperature to False."
                    )
                plan.change_weight(place, Temperature(plan.stock(place), place.rows))

    def after_step(self, model: nn.Module, progress: float) -> None:
        for graft in lifecycle.own_grafts(model, self, Temperature):
            graft.value.clamp_(LEAST, MOST)


class Gate(Graft):
    """Of the tokens behind the prefix: σ(g) · what leaves + (1 − σ(g)) · what entered."""

    scalable = False
    wraps = True
    order = -1  # right behind the tokens themselves, before other methods' come in

    def __init__(self, start: float, count: int, stream: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((), -start, **options))
        self.prefix, self.end, self.key = stream.prefix, stream.prefix + count, ""
        self.arg, self.output = stream.arg, stream.output

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{path}/{slot}"

    def before(self, x: Tensor) -> Tensor:
        state()[self.key] = x[:, self.prefix : self.end]
        return x

    def after(self, y: Tensor) -> Tensor:
        mixed = torch.lerp(state().pop(self.key), y[:, self.prefix : self.end], torch.sigmoid(self.logit).to(y.dtype))
        return torch.cat((y[:, : self.prefix], mixed, y[:, self.end :]), 1)


class Temperature(Delta):
    """W_q' = W_q / τ, and of its bias, so that q k / √d becomes q k / (τ √d)."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None) -> None:
        super().__init__(rows)
        self.value = nn.Parameter(
            torch.ones((), device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        )

    def forward(self, weight: Tensor) -> Tensor:
        return (weight / self.value).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else (bias / self.value).to(bias.dtype)
