from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from peft_core.errors import PeftError
from peft_core.grafts.reversible import Reversible, halves
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Count, Positive, Rate, Whole

FACTORS = {"layer": (0.1, 1.0), "adapter": (1.0, 0.1), "attn": (0.1, 0.1)}


@dataclass(frozen=True, kw_only=True)
class MEFT(Method):
    """Memory-efficient fine-tuning: blocks made reversible, y₁ = λ x₁ + F(x₂), y₂ = β x₂ + G(y₁); what blocks receive is computed
    anew from what they give, so that activations are not kept.

    Liao, Tan, Monz, "Make Pre-trained Model Reversible: From Parameter to Memory Efficient Fine-Tuning", NeurIPS 2023. At the
    first of the blocks the stream is doubled, x₁ = x₂ = x, and behind the last averaged, (y₁ + y₂)/2. An adapter stands beside
    each MLP and reads what it reads; F is the block with it and G another adapter (`layer`, MEFT₁), or the other way round
    (`adapter`, MEFT₂), and the next block gets (y₂, y₁); or F is the attention step with an adapter behind it, y + adapter(y),
    and G the MLP's step (`attn`, MEFT₃), and the next block gets (y₁, y₂). Adapters are Up(gelu(Down x)), both weights N(0,
    0.02²), biases zero. Dropout and drop path draw again what they drew. Width 8, λ, β = 0.1, 1 (MEFT₁), 1, 0.1 (MEFT₂) and
    0.1, 0.1 (MEFT₃): BaohaoLiao/mefts (1d1c961, BERT; learning rates 5e-4 to 8e-4, Adam's β₂ 0.98, weight decay 0.1, gradient
    norm 1, dropout of the base in adapters).

    Computing the inputs anew divides by λ or β: an error grows about 11 times a block (MEFT₃ 100), in float32 beyond use over
    six. So the pair is kept behind every `keep`th block, where the authors keep one alone (`keep=None`). Inputs of half
    precision are not inverted: activations are kept, as under compilation and FSDP2. Not identical at step 0: the stream of a
    block before joins with λ or β. 313,536 parameters on ViT-B/16.

    Args:
        variant: what F is.
        bottleneck: width of both adapters.
        factors: λ and β; the variant's own where None.
        keep: blocks from one kept pair to the next; None: the last alone.
        recomputed: how many of the blocks, from the first, are inverted; all where None. The others keep their activations.
    """

    variant: Literal["layer", "adapter", "attn"] = "layer"
    bottleneck: Count = 8
    factors: tuple[Positive, Positive] | None = None
    dropout: Rate = 0.0
    keep: Count | None = 2
    recomputed: Whole | None = None
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream", "gates")
    not_mergeable: ClassVar[str | None] = "a stream in two parts is no change of weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 313_536), ({"variant": "attn"}, 313_536))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        other = cls(bottleneck=4, variant="adapter", dropout=0.1, keep=1, tower="image")
        return cls(bottleneck=4), other, cls(bottleneck=4, variant="attn")

    def install(self, plan: Plan) -> None:
        for tower, paths in plan.runs():
            stream = plan.stream(tower)
            if self.blocks is not None and len(set(self.blocks)) != len(paths):
                raise PeftError(
                    f"meft inverts blocks one behind the other: choose consecutive ones, not {self.blocks}."
                )
            steps = [step for step in plan.anatomy.sublayers if step.tower == tower]
            if any(step.gate is None or step.stream not in (None, tower) for step in steps):
                raise PeftError(f"meft inverts blocks of one stream, and those of this {plan.anatomy.family} join two.")
            options = plan.options_at(paths[0])
            if next(plan.model.get_submodule(paths[0]).parameters()).dtype not in (torch.float32, torch.float64):
                raise PeftError("meft divides by small factors to invert blocks, which half precision is too coarse for: load "
                                "the model in float32.")  # fmt: skip
            last = len(paths) if self.recomputed is None else min(self.recomputed, len(paths))
            for number, path in enumerate(paths):
                before, behind = (paths[n] if 0 <= n < len(paths) else None for n in (number - 1, number + 1))
                change = None if self.variant == "attn" else self._adapter(stream.width, options)
                graft = Reversible(
                    change, self.variant == "layer", self.factors or FACTORS[self.variant],
                    swaps=self.variant != "attn", comes=path if before else None, goes=behind, recomputes=number < last,
                    keeps=number == last - 1 or bool(self.keep and (last - 1 - number) % self.keep == 0),
                )  # fmt: skip
                graft.arg, graft.output = stream.arg, stream.output
                plan.join(path, "reversible", graft)
                own = [step for step in steps if step.entry.startswith(f"{path}.")]
                if self.variant == "attn":
                    for module, half in halves(path, own):
                        plan.join(module, "halved", half)
            for sublayer, *_ in plan.sublayers(("attn", "mlp"), 1):
                if sublayer.tower == tower and sublayer.kind == "mlp":
                    plan.add_branch(sublayer, self._adapter(stream.width, options), normed=True)
                elif sublayer.tower == tower and self.variant == "attn":
                    plan.add_behind(sublayer, self._adapter(stream.width, options))

    def _adapter(self, dim: int, options: dict[str, Any]) -> Bottleneck:
        return Bottleneck(
            dim, self.bottleneck, activation="gelu", dropout=self.dropout, std=0.02, tails=True, options=options
        )
