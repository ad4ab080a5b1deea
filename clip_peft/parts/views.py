"""Methods that look at several views of a picture when it is named: what they share."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.learner import Learner
from peft_core.errors import PeftError
from peft_core.values import Range

Views = Annotated[int, Range(1, 4096)]
Part = Annotated[float, Range(above=0, most=1)]
AUGMIX: Mapping[str, Mapping[str, Any]] = {
    name: {"augmix": True}
    for name in ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
                 "eurosat", "ucf101")
}  # fmt: skip
"""The sets on which TPT's authors, and those who build on them, mix what was done to a view (AugMix)."""


class OfViews(Learner):
    """Image features are B V E, of views B V 3 H W whose first is the picture itself, or of pictures alone, V = 1."""

    def encode(self, images: Tensor) -> Tensor:
        if images.dim() == 4 and self.method.views == 1:
            images = images[:, None]
        if images.dim() != 5:
            raise PeftError(
                f"{self.method.name} needs several views of each picture, B V 3 H W, but got {tuple(images.shape)}."
            )
        return self.clip.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def views_of(self, features: Tensor) -> Tensor:
        """B V E, of norm 1, from features as `encode` gives them or, of pictures alone, B E."""
        return F.normalize(features if features.dim() == 3 else features[:, None], dim=-1)


def entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def surest(logits: Annotated[Tensor, "B V C"], share: float) -> Annotated[Tensor, "B K"]:
    """B K: the views of least entropy, that share of them, one at least; logits B V C."""
    count = max(1, int(logits.shape[1] * share))
    return entropy(logits.float().log_softmax(-1)).topk(count, largest=False).indices


def of_kept(values: Annotated[Tensor, "B V C"], kept: Annotated[Tensor, "B K"]) -> Annotated[Tensor, "B K C"]:
    """B K C of B V C."""
    return values.gather(1, kept[..., None].expand(-1, -1, values.shape[-1]))


def confident_entropy(logits: Annotated[Tensor, "B V C"], kept: Annotated[Tensor, "B K"]) -> Annotated[Tensor, "B"]:
    """B: the entropy of the mean softmax over the kept views; logits B V C, kept B K view indices."""
    log_p = of_kept(logits, kept).float().log_softmax(-1).logsumexp(1)
    return entropy(log_p - torch.tensor(float(kept.shape[1])).log().to(logits.device))


def tuned(start: Tensor, texts: Callable[[Tensor], Tensor], compare: Callable[[Tensor, Tensor], Tensor], f: Tensor,
          kept: Tensor, lr: float, steps: int) -> Tensor:  # fmt: skip
    """What AdamW steps on H(mean softmax of the kept views) make of B copies of `start`, one a picture.

    Args:
        texts: class features B C E of norm 1, of such copies.
        compare: logits B V C of views and these.
        f: views B V E of norm 1.
        kept: B K.
    """
    with torch.inference_mode(False), torch.enable_grad():
        own = start.detach().expand(len(f), *start.shape).clone().requires_grad_()
        views, kept = f.detach().clone(), kept.clone()  # none of them an inference tensor
        optimizer = torch.optim.AdamW([own], lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            confident_entropy(compare(views, texts(own)), kept).sum().backward()
            optimizer.step()
    return own.detach()
