import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.lifecycle import Progress
from peft_core.method import Method, Plan
from peft_core.parts.tokens.pixels import Frame, PixelPrompt, frame_of
from peft_core.values import Positive


@dataclass(frozen=True, kw_only=True)
class EVP(PixelPrompt):
    """EVP: the picture shrinks, the frame around it is learnt, and its steps have the same length whatever the gradient.

    Wu et al., "Unleashing the Power of Visual Prompting At the Pixel Level", TMLR 2024. On pictures from 0 to 1, before they are
    normalised, x ← pad(resize(x)) + P, P (3 n) the n pixels of the frame, starting at 0 (black); after each batch
        P ← P − rate_t · g_P / ‖g‖₂,   rate_t = rate · (1 + cos(π t/T)) / 2,
    g (3 H W) the batch's gradient on the whole picture, frame and inside, g_P its part on the frame: a rule of its own, whatever
    optimiser trains the head; P has neither momentum nor weight decay. As in UCSC-VLAA/EVP (96b7131): 164 of 224 pixels
    (bicubic), border 30, rate 70, batches of 256, 1,000 epochs on CLIP ViT-B/32, whose texts classify (`clip_peft fit --method
    evp`); on other models a head trains here, where they match classes to ImageNet's. They lower the rate by the epoch, here it
    is by the step; they shrink the file's picture, here it is the one that the model would get. Not identical at step 0.
    69,840 parameters at 224 pixels.

    Args:
        border: the frame's pixels on each side; 30/224 of the picture's side where None.
        mean: of the channels from 0 to 1, as the pictures were normalised; the model's own where None.
        std: likewise.
        rate: the first step's length, in units where white is 1.
    """

    rate: Positive = 70.0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 69_840),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(border=5, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)),)

    def install(self, plan: Plan) -> None:
        place, made_of = self.at(plan)
        plan.join(place.module, "frame", PixelFrame(**made_of))

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        return ({"params": [frame_of(model, self).prompt], "lr": 0.0, "weight_decay": 0.0},)

    def after_step(self, model: nn.Module, progress: float) -> None:
        frame = frame_of(model, self)
        gradient, frame.whole.grad = frame.whole.grad, None
        if gradient is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
        done = (progress.step - 1) / progress.steps if isinstance(progress, Progress) else progress
        rate, norm = self.rate * (1 + math.cos(math.pi * done)) / 2, gradient.norm()
        if norm.isfinite():  # a loss scale that was too large: the optimiser leaves such a step out, too
            frame.prompt -= rate * gradient.flatten(1)[:, frame.index] / (norm + 1e-10)


class PixelFrame(Frame):
    """The picture shrunk within the frame P (3 n); `whole` (3 H W) is 0, and gets in training the gradient on all of it."""

    def __init__(self, **made_of: Any) -> None:
        super().__init__(**made_of, shrink="bicubic")
        self.prompt = nn.Parameter(torch.zeros(3, self.count, **made_of["options"]))
        self._keep("whole", torch.zeros(3, *self.size, **made_of["options"]).requires_grad_())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.whole = self.whole.detach().requires_grad_()  # what is moved is no leaf
        return self

    def pixels(self, x: Tensor) -> Tensor:
        return self.normalised(self.prompt)

    def watched(self, framed: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return framed
        return framed + self.whole / self.std[..., None]  # type: ignore[index]
