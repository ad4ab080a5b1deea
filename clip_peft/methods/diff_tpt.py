from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextMethod, start_context
from clip_peft.parts.tuned_prompt import TunedPrompt
from clip_peft.parts.views import AUGMIX, Part, surest
from peft_core.jobs.hub.variations import Variations, check_base
from peft_core.method import Method
from peft_core.values import Count, NotNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class DiffTPT(ContextMethod):
    """DiffTPT: TPT with views that a diffusion model makes of the picture, beside the random crops.

    Feng et al., "Diverse Data Augmentation with Diffusions for Effective Test-time Prompt Tuning", ICCV 2023 (2308.06038);
    chunmeifeng/DiffTPT. Images are views B V 3 H W: the picture, 64 crops of it, 63 variations. Kept are first those whose
    logits look most like the picture's, the share `similar` of all others by cosine, and the picture; then, of these, the share
    `confident` of least entropy. `steps` of AdamW lower H(mean softmax) of what is kept, and the picture is named with the
    result. (As their code does it; by the paper's words generated views alone are filtered.) Nothing is kept.

    The authors' variations are those of lambdalabs/sd-image-variations-diffusers at guidance 3 and 50 steps; other pipelines go
    from the image to an image, which is this package's, so that the shipped reference works without a download.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from.
        similar: share of the views, the picture apart, that is kept for their likeness.
        confident: share of what is left that is kept, at least one.
        lr: of AdamW (weight decay 0.01, PyTorch's default).
        steps: how many.
        views: the picture and random crops, mirrored or not.
        generated: how many variations.
        augmix: mix what was done to a crop; published for fine-grained sets, where `fit` sets it.
        base: a diffusers pipeline: `reference`, a folder, or a hub's name.
        denoising: steps of its sampler.
        guidance: of a pipeline that makes image variations.
        strength: of others: how much of the picture's is noise, 1 all.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    similar: Part = 0.8
    confident: Part = 0.3
    lr: Positive = 5e-3
    steps: Annotated[int, Range(1, 1000)] = 4
    views: Annotated[int, Range(2, 4096)] = 65
    generated: Annotated[int, Range(1, 4096)] = 63
    augmix: bool = False
    base: str = "reference"
    denoising: Count = 50
    guidance: NotNegative = 3.0
    strength: Annotated[float, Range(above=0, most=1)] = 0.6
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = AUGMIX
    no_class_weights: ClassVar[str | None] = "it compares each picture with texts of its own"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(views=4, generated=2, steps=2, denoising=2),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        check_base(self.base, "--method.base")
        return _DiffTPT(clip, self, names, start_context(clip, self.name, self.context, self.init))


class _DiffTPT(TunedPrompt):
    @property
    def variations(self) -> Variations:
        method = self.method
        return Variations(method.base, method.denoising, method.guidance, method.strength)

    def chosen(self, logits: Tensor) -> Tensor:
        return alike_and_sure(logits, self.method.similar, self.method.confident)


def alike_and_sure(logits: Annotated[Tensor, "B V C"], similar: float, confident: float) -> Annotated[Tensor, "B K"]:
    """The views that are kept."""
    near = F.cosine_similarity(logits[:, :1].float(), logits[:, 1:].float(), dim=-1)
    alike = near.topk(int(near.shape[1] * similar), dim=1).indices + 1
    alike = torch.cat((alike.new_zeros(len(alike), 1), alike), dim=1)
    left = logits.gather(1, alike[..., None].expand(-1, -1, logits.shape[-1]))
    return alike.gather(1, surest(left, confident))
