"""Prompts at the first blocks of both towers, each tower's own or the image tower's made of the text tower's."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.parts.context import ContextLearner, rest_of, start_context
from clip_peft.parts.image_prompts import ImageTower, check_depth, check_format


class DeepPrompts(ContextLearner):
    """`context` vectors (where None, `method.context`) before the name and new ones, `deep`, at the text blocks 1 … depth − 1;
    what stands behind the patches at each of the image tower's first blocks is a subclass's, in `of_image`."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], reference: str | Sequence[str] | None = None,
                 context: int | None = None):  # fmt: skip
        image, count = ImageTower(clip.model.visual, method.name), context or method.context
        check_depth(method.name, method.depth, len(clip.tower.blocks), len(image.blocks))
        start = start_context(clip, method.name, count, method.init, rest=True)
        super().__init__(clip, method, names, start, rest_of(method.init, clip, count), reference=reference)
        self.image_tower = image
        self.deep = nn.ParameterList([nn.Parameter(clip.random(count)) for _ in range(method.depth - 1)])

    def of_image(self) -> list[Tensor]:
        """The image prompts, M V for each block."""
        raise NotImplementedError(f"{type(self).__name__} must define of_image()")

    def from_format(self, tensors: dict[str, Tensor], format: int) -> dict[str, Tensor]:
        check_format(self.method.name, self.image_tower, format)
        return tensors

    def text_parameters(self) -> list[nn.Parameter]:
        return [self.context, *self.deep]

    def raw_texts(self) -> Tensor:
        return self.text_pass(self.context, list(self.deep))

    def encode(self, images: Tensor) -> Tensor:
        with self.image_tower.prompted(self.of_image()):
            return self.clip.model.encode_image(images, normalize=False)


class CoupledPrompts(DeepPrompts):
    """The image tower's prompts are F_j(P_j) of the text prompts P_0 … P_{J−1} (M D), F_j a linear D → V of its own."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], reference: str | Sequence[str] | None = None,
                 context: int | None = None):  # fmt: skip
        super().__init__(clip, method, names, reference, context)
        widths, device = (clip.tower.width, self.image_tower.width), self.context.device
        self.project = nn.ModuleList([nn.Linear(*widths, device=device) for _ in range(method.depth)])

    def of_image(self) -> list[Tensor]:
        return [f(p) for f, p in zip(self.project, [self.context, *self.deep], strict=True)]
