from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft
from peft_core.method import Method, Plan
from peft_core.parts.tokens.label_map import counted, matched
from peft_core.parts.tokens.pixels import Frame, PixelPrompt
from peft_core.stock import find_heads
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class ILMVP(PixelPrompt):
    """ILM-VP: a learnt frame around the shrunk picture, and of the classes that the model knows one for each of the task's.

    Chen, Yao, Chen, Zhang, Liu, "Understanding and Improving Visual Prompting: A Label-Mapping Perspective", CVPR 2023. On
    pictures from 0 to 1 x ← pad(resize(x)) + σ(P) on the frame, P (3 n) starting at 0 (grey), then normalised; logits
    y ← y[map]. No head trains: the pretrained one speaks, and before every epoch `prepare` counts in the training data how often
    each of its classes s is the answer to a picture of class t, takes the largest count as a pair, leaves both out, and so on
    (equal counts: the lower s, then the lower t). As in OPTML-Group/ILM-VP (84ca042), its form for ImageNet models: 128 of 224
    pixels (bilinear; 32 for pictures of that size), Adam at 0.01 without weight decay, a tenth of it from half and from 72 % of
    200 epochs on, batches of 128: recipe `ilm_vp`, with this package's cosine. Its form for CLIP, which maps to texts
    of many templates, is `clip_peft`'s `ilm_vp_clip`. Not identical at step 0. 101,376 parameters at 224 pixels.

    Args:
        border: the frame's pixels on each side; 48/224 of the picture's side where None.
        mean: of the channels from 0 to 1, as the pictures were normalised; the model's own where None.
        std: likewise.
        classes: of the task; a run fills it in.
    """

    classes: Count | None = None
    share: ClassVar[tuple[int, int]] = (48, 224)
    keeps_head: ClassVar[bool] = True
    prepares_each_epoch: ClassVar[bool] = True
    suits: ClassVar[tuple[str, ...]] = ("timm ViT", "timm Swin")
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"classes": 10}, 101_376),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(border=5, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), classes=2),)

    def for_run(self, mean: Sequence[float], std: Sequence[float], classes: int) -> Self:
        known = super().for_run(mean, std, classes)
        return known if known.classes is not None else replace(known, classes=classes)

    def install(self, plan: Plan) -> None:
        if self.classes is None:
            raise PeftError("ilm_vp needs the number of classes of the task: classes=10.")
        if not head_of(plan):
            raise PeftError(
                "ilm_vp trains no head, and this model has none: load it with the one it was pretrained with."
            )
        place, made_of = self.at(plan)
        plan.join(place.module, "frame", SigmoidFrame(**made_of))
        plan.join("", "mapping", Mapped(self.classes, made_of["options"]["device"]))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        pairs, mapped = lifecycle.labelled(losses), self._mapped(model)
        if pairs is None:
            return
        mapped.watching, counts = True, torch.zeros(0)
        try:
            with torch.no_grad():
                for _, labels in pairs:
                    seen, known = mapped.seen
                    if not len(counts):
                        counts = torch.zeros(known, len(mapped.sources), device=seen.device)
                    counted(counts, seen, labels)
        finally:
            mapped.watching = False
        if len(counts):
            mapped.sources.copy_(matched(counts))
            lifecycle.memory(model, self)["mapped"] = True

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not lifecycle.memory(model, self).get("mapped"):
            raise PeftError(
                "ilm_vp maps classes by the training data's: before each epoch call peft_core.lifecycle.prepare(model, losses) "
                "with `lifecycle.Losses(…, labels=…)`."
            )

    def _mapped(self, model: nn.Module) -> Any:
        return next(lifecycle.own_grafts(model, self, Mapped))


def head_of(plan: Plan) -> list[nn.Parameter]:
    heads = find_heads(plan.model, plan.anatomy)
    return [parameter for path in heads for parameter in plan.model.get_submodule(path).parameters()]


class SigmoidFrame(Frame):
    """The picture shrunk within the frame σ(P), P (3 n)."""

    def __init__(self, **made_of: Any) -> None:
        super().__init__(**made_of, shrink="bilinear")
        self.prompt = nn.Parameter(torch.zeros(3, self.count, **made_of["options"]))

    def pixels(self, x: Tensor) -> Tensor:
        return self.normalised(torch.sigmoid(self.prompt))


class Mapped(Graft):
    """Logits B S → B C of the classes `sources` (C)."""

    scalable = False

    def __init__(self, classes: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("sources", torch.arange(classes, device=device))
        self.watching, self.seen = False, (torch.zeros(0), 0)

    def after(self, y: Tensor) -> Tensor:
        if len(self.sources) > y.shape[-1]:  # type: ignore[arg-type]
            raise PeftError(
                f"the model knows {y.shape[-1]} classes, fewer than the task's {len(self.sources)}, of which each needs one of "  # type: ignore[arg-type]
                "its own: choose a model with more, or a method that trains a head."
            )
        if self.watching:
            self.seen = y.argmax(-1), y.shape[-1]
        return y.index_select(-1, self.sources)  # type: ignore[arg-type]
