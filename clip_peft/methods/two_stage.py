from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.text.prompts import spoken
from clip_peft.text.templates import DEFAULT, TEMPLATES
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.registry import make_method
from peft_core.values import Share


@dataclass(frozen=True, kw_only=True)
class TwoStage(OpenVocabularyMethod):
    """2SFS: first both towers are tuned, then, on what they give, a classifier that starts from the tuned class features.

    Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025;
    FarinaMatteo/rethinking_fewshot_vlms. Stage 1, the first α of the steps: cross entropy on s · f̂·t̂_c, where `peft` trains.
    Stage 2, the rest: the towers stand still and W (C, E), which begins as the rows t̂_c, trains by cross entropy on
    s · f̂·ŵ_c. Each stage has the whole schedule of rates. A name that was trained on is recognised by its row of W, any
    other by its text through the tuned tower. 65,536 parameters on ViT-B-16 in stage 1 (the norms of both towers), C · E in
    stage 2. Their code freezes ln_pre, ln_post and ln_final again after it chose them (61,440 train there), and its weight decay
    reaches norms, where ours spares vectors.

    Args:
        peft: the method, or preset, of stage 1: layer_norm; there also bitfit and clip_lora.
        share: α.
        template: of the class texts; a photo of a {}. for all data sets, as there.
    """

    peft: str = "layer_norm"
    share: Share = 0.6
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = dict.fromkeys(TEMPLATES, DEFAULT)
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 65_536 + 512_000),)

    def inner(self) -> tuple[Method, ...]:
        method = make_method(self.peft)
        if not method.grafts or not method.keeps_originals:
            raise PeftError(
                f"{self.name} tunes the towers by a method that grafts into them, which {self.peft} is not."
            )
        return (method,)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TwoStage(clip, self, names)


class _TwoStage(TemplateLearner):
    second: Tensor
    encodes_as_model: ClassVar[bool] = True

    def __init__(self, clip: Clip, method: TwoStage, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.trained = self.names
        self.classifier = nn.Parameter(torch.zeros(len(self.names), clip.tower.features, device=clip.tower.device))
        self.register_buffer("second", torch.tensor(False))

    def stages(self) -> tuple[float, ...]:
        return tuple(share for share in (self.method.share, 1 - self.method.share) if share)

    @torch.no_grad()
    def before_step(self, step: int, steps: int) -> None:
        if step >= round(self.method.share * steps) and not self.second:
            self.classifier.copy_(self.class_features())
            self.second.fill_(True)

    @property
    def kept_names(self) -> tuple[str, ...]:
        return tuple(self.trained)

    def text_parameters(self) -> list[Any]:
        return [self.classifier, self.second]

    def encode(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.second):
            return super().encode(images)

    def class_features(self) -> Tensor:
        """In stage 2 the rows of W for the classes that were trained on."""
        if not self.second:
            return super().class_features()
        rows = F.normalize(self.classifier, dim=-1)
        if self.names == self.trained:
            return rows
        with torch.no_grad():
            texts = super().class_features()
        known = {spoken(name): row for row, name in zip(rows, self.trained, strict=True)}
        return torch.stack([known.get(spoken(name), text) for name, text in zip(self.names, texts, strict=True)])
