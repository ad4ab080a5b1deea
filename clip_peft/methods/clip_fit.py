from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from clip_peft.frozen import Clip, mean_features
from clip_peft.learner import HeldNear, Learner, OpenVocabularyMethod, TemplateLearner, stock
from clip_peft.text.templates import DEFAULT
from peft_core.method import Method
from peft_core.registry import make_method
from peft_core.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class CLIPFit(OpenVocabularyMethod):
    """CLIPFit: the biases of the text tower's second MLP linears and the image tower's norms train, texts held near zero-shot.

    Li et al., "Vision-Language Model Fine-Tuning via Simple Parameter-Efficient Modification", EMNLP 2024; minglllli/CLIPFit.
    Loss = CE on s · f̂·t̂_c + λ · mean_c(1 − cos(t_c, h_c)), h_c the stock model's class features. 46,080 parameters on ViT-B-16:
    6,144 biases, 39,936 of the norms. Both are stock parameters, so the merged model is plain.

    Args:
        weight: λ; 8 from base to new, and for few shots on dtd and sun397; 2 there for few shots on the others.
        template: of the class texts.
    """

    weight: NotNegative = 8.0
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {"dtd": "a photo of a {}, a type of texture."}
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 46_080),)

    def inner(self) -> tuple[Method, ...]:
        return make_method("bitfit", tower="text", targets=("fc2",)), make_method("layer_norm", tower="image")

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _CLIPFit(clip, self, names)


class _CLIPFit(HeldNear, TemplateLearner):
    def for_names(self) -> None:
        super().for_names()
        with torch.no_grad(), stock(self.clip.model):
            self.register_buffer("hand", mean_features(self.text_passes), persistent=False)
