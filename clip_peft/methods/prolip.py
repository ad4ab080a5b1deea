from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.remembering import Remembering
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class ProLIP(OpenVocabularyMethod):
    """ProLIP: the image tower's last linear map trains, f = x W + b₀, and stays near the stock one:
    loss = CE + λ ‖W − W₀‖²_F (a sum).

    Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", 2024 (2410.05270); astra-vision/ProLIP. What the
    map receives is encoded once; a ResNet's bias stays frozen. W starts at W₀ and can take its place in a plain model (merge).
    Adam with ε 1e-4 as there, which keeps weights of small gradients where they are. D · E parameters.

    Args:
        strength: λ; None is 1 / N, N the training pictures a class (their choice where nothing is searched; 1/N² the other).
        template: of the class texts (see zero_shot).
    """

    strength: NotNegative | None = None
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it changes how image features are projected"
    merges: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 393_216),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _ProLIP(clip, self, names)


class _ProLIP(Remembering, TemplateLearner):
    projected = False

    def __init__(self, clip: Clip, method: ProLIP, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.weight = nn.Parameter(clip.projection.weight.detach().float().clone())
        self.shots = 1.0

    def start(self, features: Tensor, labels: Tensor) -> None:
        self.shots = len(labels) / len(self.names)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().logits(self.clip.projection(features, self.weight), weights)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        strength = 1 / self.shots if self.method.strength is None else self.method.strength
        away = (self.weight - self.clip.projection.weight.detach()).square().sum()
        return super().loss(features, labels, images) + strength * away

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        return ({"params": [self.weight], "lr": lr, "weight_decay": weight_decay, "eps": 1e-4},)

    def write_into(self, model: nn.Module) -> None:
        self.clip.projection.write(self.weight)
