from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.learner import Clip, ContextLearner, Learner, OpenVocabularyMethod
from clip_peft.text.templates import DEFAULT, templates
from peft_core.errors import PeftError


@dataclass(frozen=True, kw_only=True)
class ProGrad(OpenVocabularyMethod):
    """ProGrad: CoOp whose step never goes against zero-shot CLIP: g = g_d − λ (g_d·ĝ_g) ĝ_g where g_d·g_g < 0, else g_d.

    Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023; BeierZhu/Prompt-align. g_d is the gradient of the
    cross entropy, g_g that of KL(zero-shot ‖ learnt), ĝ_g = g_g/‖g_g‖. The context ends with the template's words and
    starts with zeros. 8,192 parameters on ViT-B-16.

    Args:
        context: M.
        strength: λ.
        template: of zero-shot CLIP, and what the context starts from (the words before the name).
    """

    context: int = 16
    strength: float = 1.0
    template: str = DEFAULT

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        (template,) = templates(self.template)[:1]
        if (lead := template.partition("{}")[0].strip()) == "":
            words = clip.random(0)
        else:
            words = clip.words(lead)
        if len(words) > self.context or self.context < 1:
            raise PeftError(
                f'prograd: the template\'s words "{lead}" are {len(words)} tokens, more than context {self.context}: raise it.'
            )
        start = torch.cat((words.new_zeros(self.context - len(words), words.shape[1]), words))
        return _ProGrad(clip, self, names, start, reference=self.template)


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
