from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import HeldNear, Learner
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
from clip_peft.text.templates import DEFAULT
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.values import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class TCP(ContextMethod):
    """TCP: KgCoOp whose context is replaced, at one text block, by tokens made of each class's own hand-written feature.

    Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", CVPR 2024;
    htyao89/Textual-based_Class-aware_prompt_tuning. With h_c (E) the normalised feature of the hand-written prompt, T_c = W₂
    g(W₁ h_c + b₁) + b₂, g(x) = x σ(1.702 x), W₁ (E/4, E), W₂ (M D, E/4): M tokens that take the place of the states of the M
    context tokens before block `layer` (from 0). Loss = CE + w · mean_c(1 − cos(t_c, h_c)). Names that were not trained on get
    tokens of their own. 331,904 parameters on ViT-B-16.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from; None for N(0, 0.02²).
        layer: the text block at which T_c comes in.
        reduction: E / hidden width.
        weight: w.
        template: of the hand-written prompts.
        behind: the name with what stands behind the context.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    layer: Count = 8
    reduction: Count = 4
    weight: NotNegative = 8.0
    template: str | Sequence[str] = DEFAULT
    behind: str = "{}."
    customary: ClassVar[Mapping[str, str]] = {
        "fgvc_aircraft": "a photo of an aircraft {}.",
        "dtd": "a photo of a {}, a type of texture.",
        "food101": "a photo of a {}, a type of food.",
    }
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "oxford_pets": {"behind": "{}, a type of pet."},
        "oxford_flowers": {"behind": "{}, a type of flower."},
        "fgvc_aircraft": {"behind": "{}, a type of aircraft."},
        "dtd": {"behind": "{} texture."},
        "stanford_cars": {"behind": "{}, a type of car"},
        "food101": {"behind": "{}, a type of food."},
        "ucf101": {"behind": "person doing {}."},
    }
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 331_904),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(layer=1), cls(layer=2, init=None, context=2))

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        if not 1 <= self.layer < len(clip.tower.blocks):
            raise PeftError(
                f"{self.name} got layer {self.layer}: it must lie between 1 and {len(clip.tower.blocks) - 1}, a later block of "
                "open_clip's own text tower."
            )
        start = start_context(clip, self.name, self.context, self.init)
        return _TCP(clip, self, names, start, self.behind, reference=self.template)


class _TCP(HeldNear, ContextLearner):
    def __init__(self, clip: Clip, method: TCP, names: Sequence[str], context: Tensor, behind: str, reference):
        super().__init__(clip, method, names, context, behind, reference=reference)
        features, device = clip.tower.features, context.device
        hidden = max(1, features // method.reduction)
        self.meta_net = nn.Sequential(
            nn.Linear(features, hidden, device=device), _QuickGELU(), nn.Linear(hidden, context.numel(), device=device)
        )

    def raw_texts(self) -> Tensor:
        tokens = self.meta_net(self.hand.to(self.context.dtype)).view(-1, *self.context.shape)
        deep = [None] * (self.method.layer - 1) + [tokens]
        return self.text_pass(self.context, deep)


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()
