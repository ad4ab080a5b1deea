from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.parts.context import ContextLearner, checked_context, rest_of
from clip_peft.text.templates import DEFAULT, templates
from peft_core.errors import PeftError
from peft_core.values import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class ProGrad(OpenVocabularyMethod):
    """ProGrad: CoOp whose step never goes against zero-shot CLIP: g = g_d − λ (g_d·ĝ_g) ĝ_g where g_d·g_g < 0, else g_d.

    Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023; BeierZhu/Prompt-align. g_d is the gradient of the
    cross entropy, g_g that of KL(zero-shot ‖ learnt), ĝ_g = g_g/‖g_g‖. The context ends with the template's words (so many
    tokens as they are words: what a comma adds stays in the text) and starts with zeros. 8,192 parameters on ViT-B-16.

    Args:
        context: M.
        strength: λ.
        template: of zero-shot CLIP, and what the context starts from (the words before the name).
    """

    context: Count = 16
    strength: NotNegative = 1.0
    template: str = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {
        "oxford_pets": "a type of pet, a photo of a {}.",
        "oxford_flowers": "a type of flower, a photo of a {}.",
        "food101": "a type of food, a photo of {}.",
        "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
        "dtd": "a texture of {}.",
    }
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 8_192),)

    @classmethod
    def examples(cls) -> Iterable["ProGrad"]:
        return (cls(context=6),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        (template,) = templates(self.template)[:1]
        lead = template.partition("{}")[0].strip()
        checked_context(clip, self.name, self.context)
        words = clip.words(lead)[: len(lead.split())] if lead else clip.random(0)
        if len(words) > self.context:
            raise PeftError(
                f'prograd: the template\'s words "{lead}" are {len(words)} tokens, more than context {self.context}: raise it.'
            )
        start = torch.cat((words.new_zeros(self.context - len(words), words.shape[1]), words))
        return _ProGrad(clip, self, names, start, rest_of(lead, clip, len(words)), reference=self.template)


def projected(own: Tensor, general: Tensor, strength: float) -> Tensor:
    """own − strength · (own·ĝ) ĝ where own·general < 0, else own."""
    unit = general / general.norm().clamp(min=torch.finfo(general.dtype).tiny)
    return own - strength * (own * unit).sum().clamp(max=0) * unit


class _ProGrad(ContextLearner):
    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        """The cross entropy; its backward gives the projected gradient."""
        logits = self.clip.compare(features.detach(), self.weights())
        own = F.cross_entropy(logits, labels)
        if not torch.is_grad_enabled():
            return own
        general = F.kl_div(
            logits.float().log_softmax(-1),
            self.clip.compare(features.detach(), self.hand).float().log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        (g,) = torch.autograd.grad(own, self.context, retain_graph=True)
        (away,) = torch.autograd.grad(general, self.context)
        step = (projected(g, away, self.method.strength) * self.context).sum()
        return own.detach() + step - step.detach()
