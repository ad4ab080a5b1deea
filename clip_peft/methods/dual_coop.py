from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, cosine
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextMethod, start_context
from clip_peft.regions import check_regions
from clip_peft.text.prompts import checked_names
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.values import Count, NotNegative, Positive, Range, Rate


@dataclass(frozen=True, kw_only=True)
class DualCoOp(ContextMethod):
    """DualCoOp: any number of labels a picture, each told by a pair of prompts, for "it is there" and "it is not", at the
    picture's places.

    Sun et al., "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations", NeurIPS 2022 (2206.09541);
    sunxm2357/DualCoOp. With t⁺_c = text([start] v⁺_1 … v⁺_M name . [end]), t⁻_c the same of v⁻, and f_r the places of the
    picture, none of which the tower's last attention mixes (`clip_peft.regions`): w_rc = softmax_r(τ cos(f_r, t⁺_c)),
    z^±_c = s Σ_r w_rc cos(f_r, t^±_c), p_c = σ(z⁺_c − z⁻_c). Loss: `weight` times the sum, over pictures and labels that are
    known, of −y (1 − p)^γ⁺ log p − (1 − y) q^γ⁻ log(1 − q), q = max(p − m, 0) (the asymmetric loss, Ridnik et al., ICCV 2021),
    whose focusing factors have no gradient, there and here.

    v ~ N(0, 0.02²) or the words of `init` and `negative_init`. s is the model's own scale (there τ · 5 = 100, CLIP's). 16,384
    parameters on ViT-B-16. Labels are B C of 1, 0 and −1 (not known), or B classes, the only one each picture has. ResNets are
    the authors'; that a ViT's last block is read the same way is this package's (MaskCLIP's idea). There squares of half a
    picture's side are cut out before RandAugment, and pictures are 448 pixels wide (preset `dual_coop_448`).

    Args:
        context: M; where None, the number of tokens of `init`, or 16.
        negative_context: that of v⁻; where None, M, or the number of tokens of `negative_init`.
        init, negative_init: texts whose token embeddings v⁺ and v⁻ start from.
        class_specific: a pair of contexts a label.
        sharpness: τ.
        weight: of the sum; the authors take more of it where fewer labels are known (0.03 at half of COCO's, 0.01 zero-shot).
        positive_focus, negative_focus: γ⁺ and γ⁻.
        margin: m.
        side: pixels of a picture, where it is not the tower's own (ResNets alone).
    """

    context: Count | None = None
    negative_context: Count | None = None
    init: str | None = None
    negative_init: str | None = None
    class_specific: bool = False
    sharpness: Positive = 20.0
    weight: Positive = 0.03
    positive_focus: NotNegative = 1.0
    negative_focus: NotNegative = 2.0
    margin: Rate = 0.05
    side: Annotated[int, Range(32, 4096)] | None = None
    suits: ClassVar[tuple[str, ...]] = ("open_clip",)
    task: ClassVar[str] = "multi_label"
    no_class_weights: ClassVar[str | None] = (
        "each label has a pair of texts, which are compared with the picture's places"
    )

    @property
    def of_classes(self) -> str | None:  # type: ignore[override]
        return "each label has learnt a pair of contexts of its own" if self.class_specific else None

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 16_384), ({"class_specific": True}, 16_384_000))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(context=3), cls(context=2, negative_context=3), cls(context=2, class_specific=True))

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        check_regions(clip.model.visual, self.name, self.side)
        if self.class_specific and (self.init or self.negative_init):
            raise PeftError(
                f"{self.name}: class-specific contexts start at random, so leave init and negative_init out."
            )
        positive = start_context(clip, self.name, self.context, self.init, default=16)
        count = self.negative_context or (len(positive) if self.negative_init is None else None)
        negative = start_context(clip, self.name, count, self.negative_init)
        if self.class_specific:
            classes = len(checked_names(names))
            positive, negative = (clip.random(classes, len(one)) for one in (positive, negative))
        return _DualCoOp(clip, self, names, positive, negative)


class _DualCoOp(Learner):
    of_regions = True

    def __init__(self, clip: Clip, method: DualCoOp, names: Sequence[str], positive: Tensor, negative: Tensor):
        super().__init__(clip, method, names)
        self.positive, self.negative = nn.Parameter(positive), nn.Parameter(negative)
        self.for_names()

    def for_names(self) -> None:
        self.text_passes = [
            self.clip.text_pass(self.clip.prompts(self.names, context=context.shape[-2]))
            for context in (self.positive, self.negative)
        ]

    def class_features(self) -> Tensor:
        """2 C E, of norm 1: there, and not there."""
        pairs = zip(self.text_passes, (self.positive, self.negative), strict=True)
        return F.normalize(torch.stack([text_pass(context) for text_pass, context in pairs]), dim=-1)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C of places B R E: z⁺ − z⁻."""
        positive, negative = self.weights() if weights is None else weights
        there, away = cosine(features, positive), cosine(features, negative)  # B R C
        share = (self.method.sharpness * there).softmax(1)
        return self.clip.scale * (share * (there - away)).sum(1)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        method, logits = self.method, self.logits(features)
        labels = F.one_hot(labels, logits.shape[1]) if labels.dim() == 1 else labels
        there, away = logits.sigmoid(), ((-logits).sigmoid() + method.margin).clamp(max=1)
        with torch.no_grad():
            focus = torch.where(labels == 1, (1 - there) ** method.positive_focus, (1 - away) ** method.negative_focus)
        sure = torch.where(labels == 1, there, away).clamp(min=1e-6).log()
        return -method.weight * (focus * sure * (labels >= 0)).sum()
