from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, cosine
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.text.templates import DEFAULT
from peft_core.errors import PeftError
from peft_core.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class TipAdapter(OpenVocabularyMethod):
    """Tip-Adapter: logits = s · f̂ tᵀ + α · exp(−β (1 − f̂ Kᵀ)) L, a cache of training features K (N, E) and one-hot L (N, C).

    Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022;
    gaopengcuhk/Tip-Adapter. `remember(features, labels)` fills the cache: with several views of each picture (K N E) a key
    is the normalised mean of its unnormalised features. With `fine_tune` (Tip-Adapter-F) K trains: 8,192,000 parameters for
    16 shots of 1,000 classes on ViT-B-16.

    Args:
        alpha: α; None is 1.17, the paper's start value, until it is chosen on validation pictures.
        beta: β; None likewise, 1.0.
        fine_tune: whether the keys train.
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative | None = None
    beta: NotNegative | None = None
    fine_tune: bool = False
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it adds what a cache of pictures says"
    customary: ClassVar[Mapping[str, str]] = {"imagenet": "ensemble7"}
    of_classes: ClassVar[str | None] = "its cache holds pictures of the classes it was filled with"

    @property
    def strengths(self) -> tuple[float, float]:
        """α, β."""
        return 1.17 if self.alpha is None else self.alpha, 1.0 if self.beta is None else self.beta

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TipAdapter(clip, self, names)


class _TipAdapter(TemplateLearner):
    def __init__(self, clip: Clip, method: TipAdapter, names: Sequence[str]):
        super().__init__(clip, method, names)
        device = clip.tower.device
        self.keys = nn.Parameter(torch.empty(0, clip.tower.features, device=device), requires_grad=method.fine_tune)
        self.values: Tensor
        self.register_buffer("values", torch.empty(0, dtype=torch.long, device=device))

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Fill the cache with image features N E (or views K N E), as the image tower gives them, and labels N."""
        if features.dim() == 3:
            features = features.mean(0)
        if not features.is_meta and (features.shape[0] != labels.shape[0] or int(labels.max()) >= len(self.names)):
            raise PeftError(
                f"tip_adapter got {features.shape[0]} features and {labels.shape[0]} labels up to {int(labels.max())} for "
                f"{len(self.names)} classes: give one label below that number for each feature."
            )
        keys = F.normalize(features.detach().float(), dim=-1)
        self.keys = nn.Parameter(keys, requires_grad=self.method.fine_tune)
        self.values = labels.to(keys.device)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (keys := state.get(prefix + "keys")) is not None and keys.shape != self.keys.shape:
            self.keys = nn.Parameter(self.keys.new_empty(keys.shape), requires_grad=self.method.fine_tune)
            self.values = self.values.new_empty(keys.shape[0])
        super()._load_from_state_dict(state, prefix, *rest)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        if not len(self.keys):
            raise PeftError(
                "tip_adapter's cache is empty: call learner.remember(features, labels) with training pictures."
            )
        alpha, beta = self.method.strengths
        near = cosine(features.to(self.keys.dtype), self.keys)
        weight = torch.exp(-beta * (1 - near))
        cache = weight.new_zeros(weight.shape[0], len(self.names)).index_add(1, self.values, weight)
        return super().logits(features, weights) + alpha * cache
