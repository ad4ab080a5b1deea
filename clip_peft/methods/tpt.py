from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.context import ContextLearner, ContextMethod, start_context
from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from peft_core.errors import PeftError
from peft_core.values import Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class TPT(ContextMethod):
    """TPT: at test time each picture gets a prompt of its own, by one step that lowers the entropy of its mean prediction.

    Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022; azshue/TPT.
    Images are views B V 3 H W (there 63 augmented ones and, first, the picture). Of each picture's views the share
    `confident` with the lowest entropy is kept, H(mean softmax) of these is lowered by AdamW steps on the context, and the
    first view is named with the result. The contexts of a batch go through the text tower together. Nothing is kept.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from.
        confident: share of the views that is kept, at least one.
        lr: of AdamW (weight decay 0.01, PyTorch's default).
        steps: how many.
        views: V, which scoring and predicting make of a picture: itself and random crops, mirrored or not.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    confident: Annotated[float, Range(above=0, most=1)] = 0.1
    lr: Positive = 5e-3
    steps: Annotated[int, Range(1, 1000)] = 1
    views: Annotated[int, Range(1, 4096)] = 64
    no_class_weights: ClassVar[str | None] = "it compares each picture with texts of its own"
    of_pictures: ClassVar[bool] = True

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        learner = _TPT(clip, self, names, start_context(clip, self.name, self.context, self.init))
        learner.context.requires_grad_(False)
        return learner


def entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def confident_entropy(logits: Tensor, kept: Tensor) -> Tensor:
    """B: the entropy of the mean softmax over the kept views; logits B V C, kept B K view indices."""
    chosen = logits.gather(1, kept[..., None].expand(-1, -1, logits.shape[-1])).float()
    return entropy(chosen.log_softmax(-1).logsumexp(1) - torch.tensor(float(kept.shape[1])).log().to(logits.device))


class _TPT(ContextLearner):
    def encode(self, images: Tensor) -> Tensor:
        """B V E of views B V 3 H W."""
        if images.dim() != 5:
            raise PeftError(f"tpt needs several views of each picture, B V 3 H W, but got {tuple(images.shape)}.")
        return self.clip.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C of the first views, from B V E."""
        f = F.normalize(features.detach(), dim=-1).clone()
        with torch.inference_mode(False), torch.enable_grad():
            context = self.context.detach().expand(len(f), 1, -1, -1).clone().requires_grad_()
            optimizer = torch.optim.AdamW([context], lr=self.method.lr)
            first = self._compare(f, self.weights())
            count = max(1, int(f.shape[1] * self.method.confident))
            kept = entropy(first.float().log_softmax(-1)).topk(count, largest=False).indices
            for _ in range(self.method.steps):
                optimizer.zero_grad()
                confident_entropy(self._compare(f, self._texts(context)), kept).sum().backward()
                optimizer.step()
        return self._compare(f[:, :1], self._texts(context.detach()))[:, 0]

    def _texts(self, context: Tensor) -> Tensor:
        return F.normalize(self.text_pass(context), dim=-1)  # B C E

    def _compare(self, f: Tensor, texts: Tensor) -> Tensor:
        return self.clip.compare(f, texts)
