from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.context import ContextLearner, rest_of, start_context
from clip_peft.frozen import Clip
from clip_peft.image_prompts import ImageTower, check_format, checked_depth
from clip_peft.learner import Learner, OpenVocabularyMethod
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class MaPLe(OpenVocabularyMethod):
    """MaPLe: text prompts P_0 … P_{J−1} (M, D) at the first J text blocks, and F_j(P_j) (M, V) at the image tower's.

    Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023; muzairkhattak/multimodal-prompt-learning. F_j is a
    linear D → V of its own. P_0 stands before the name (as in CoOp) and starts from the first M tokens of `init`, whose
    other words stay in the text; P_j replaces its states at block j and starts at N(0, 0.02²). Image prompts stand behind
    the patches, the first ones before the norm in front of the blocks (`ln_pre`). On ViT-B-16 depth 9 has 3,555,072
    parameters, depth 3 has 1,185,024.

    Args:
        depth: J.
        context: M.
        init: a text; None for a random start with nothing else before the name.
    """

    depth: Count = 9
    context: Count = 2
    init: str | None = "a photo of a"

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _MaPLe(clip, self, names)


class _MaPLe(ContextLearner):
    def __init__(self, clip: Clip, method: MaPLe, names: Sequence[str]):
        image = ImageTower(clip.model.visual, method.name)
        depth = checked_depth(method.name, method.depth, len(clip.tower.blocks), len(image.blocks))
        start = start_context(clip, method.name, method.context, method.init, rest=True)
        super().__init__(clip, method, names, start, rest_of(method.init, clip, method.context))
        self.image_tower = image
        self.deep = nn.ParameterList([nn.Parameter(clip.random(method.context)) for _ in range(depth - 1)])
        self.project = nn.ModuleList(
            [nn.Linear(clip.tower.width, image.width, device=start.device) for _ in range(depth)]
        )

    def from_format(self, tensors: dict[str, Tensor], format: int) -> dict[str, Tensor]:
        check_format(self.method.name, self.image_tower, format)
        return tensors

    def text_parameters(self) -> list[nn.Parameter]:
        return [self.context, *self.deep]

    def class_features(self) -> Tensor:
        return F.normalize(self.text_pass(self.context, list(self.deep)), dim=-1)

    def encode(self, images: Tensor) -> Tensor:
        prompts = [f(p) for f, p in zip(self.project, [self.context, *self.deep], strict=True)]
        with self.image_tower.prompted(prompts):
            return self.clip.model.encode_image(images, normalize=False)
