from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clip_peft.frozen import Clip, cosine
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.text.templates import templates
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.parts.tokens.label_map import counted, matched
from peft_core.parts.tokens.pixels import AddedFrame
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class ILMVPCLIP(OpenVocabularyMethod):
    """ILM-VP on CLIP: a learnt frame upon the picture, and for each class the one text, of many templates, that it is found by.

    Chen, Yao, Chen, Zhang, Liu, "Understanding and Improving Visual Prompting: A Label-Mapping Perspective", CVPR 2023. x ← x
    + P on the frame of the normalised picture, P (3 n) starting at 0; the classes of the model are all pairs of a template
    and a name, T · C texts, and logits are s · f̂(x)·t̂ of the C texts that were chosen. Before every epoch `prepare` counts
    in the training data how often each text is the nearest to a picture of each class, takes the largest count as a pair,
    leaves both out, and so on: so a class may be found by another one's name. Until then a class has its own name in the
    first template. As in OPTML-Group/ILM-VP (84ca042): border 30 of 224, 81 templates, SGD at 40 with momentum, cosine by the
    step to 0, 200 epochs in batches of 128: recipe `ilm_vp_clip`; a loop of one's own calls `learner.prepare(losses)`, an
    iterable of losses made without gradients. There training runs in half precision, and names are in small letters without
    hyphens. 69,840 parameters at 224 pixels. (`ilm_vp` is its form for classifiers with a head of their own.)

    Args:
        border: the frame's pixels on each side; 30/224 of the picture's side where None.
        template: of the texts, in place of the 81: templates, or names of sets of them (see zero_shot).
    """

    border: Count | None = None
    template: str | Sequence[str] = ("This is a photo of a {}.", "ensemble")
    of_classes: ClassVar[str | None] = "each class has learnt which text stands for it"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"template": "a photo of a {}."}, 69_840),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(template=("a photo of a {}.", "a bad photo of a {}.")),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _ILMVP(clip, self, names)


class _ILMVP(Learner):
    sources: Tensor
    prepares_each_epoch: ClassVar[bool] = True

    def __init__(self, clip: Clip, method: ILMVPCLIP, names: Sequence[str]):
        super().__init__(clip, method, names)
        asked = [method.template] if isinstance(method.template, str) else method.template
        every = [one for each in asked for one in templates(each)]
        self.text_passes = [each for one in every for each in clip.text_passes(self.names, one)]
        height, width = clip.picture_size
        border = method.border or max(1, round(min(height, width) * 30 / 224))
        if 2 * border >= min(height, width):
            raise PeftError(
                f"{method.name}: a border of {border} pixels leaves nothing of {height} × {width}: give less than "
                f"{min(height, width) // 2}."
            )
        self.frame = AddedFrame((height, width), border, {"device": clip.tower.device, "dtype": torch.float32})
        self.register_buffer("sources", torch.arange(len(self.names), device=clip.tower.device))
        self.counts: Tensor | None = None

    # ---- text side -------------------------------------------------------------------------------------------------

    def text_parameters(self) -> list[Any]:
        return [self.sources]

    def texts(self) -> Tensor:
        """T·C E, of norm 1: every name in the first template, then in the second …"""

        def make() -> Tensor:
            return torch.cat([nn.functional.normalize(text_pass(), dim=-1) for text_pass in self.text_passes])

        return self.remembered("texts", make)

    def class_features(self) -> Tensor:
        return self.texts()[self.sources]

    # ---- training --------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        return self.clip.model.encode_image(self.frame.before(images), normalize=False)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        if self.counts is not None:
            counted(self.counts, cosine(features, self.texts()).argmax(-1), labels)
        return super().loss(features, labels, images)

    @torch.no_grad()
    def prepare(self, losses: Iterable[Tensor]) -> None:
        counts = torch.zeros(len(self.names) * len(self.text_passes), len(self.names), device=self.sources.device)
        self.counts = counts
        try:
            for _ in losses:
                pass
        finally:
            self.counts = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        self.sources.copy_(matched(counts))
