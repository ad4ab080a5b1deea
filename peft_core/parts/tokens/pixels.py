"""Prompts of pixels: a frame that is learnt, around a picture that shrinks or upon it, before anything of the model sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft, match
from peft_core.method import Method, Plan
from peft_core.values import Count, Positive, Share

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class PixelPrompt(Method):
    """A frame of pixels at what the patch embedding of an image tower receives.

    Args:
        border: the frame's pixels on each side; the paper's share of the picture's side where None.
        mean: of the channels from 0 to 1, as the pictures were normalised; the model's own where None.
        std: likewise.
    """

    border: Count | None = None
    mean: Sequence[Share] | None = None
    std: Sequence[Positive] | None = None
    share: ClassVar[tuple[int, int]] = (30, 224)
    """The paper's border, and the side of its pictures."""
    identity: ClassVar[bool] = False
    suits: ClassVar[tuple[str, ...]] = ("timm ViT", "timm Swin", "open_clip tower", "open_clip model")
    not_mergeable: ClassVar[str | None] = "pixels are part of the picture, not of a weight."

    def for_run(self, mean: Sequence[float], std: Sequence[float], classes: int) -> Self:
        return self if self.mean is not None else replace(self, mean=tuple(mean), std=tuple(std))

    def at(self, plan: Plan) -> tuple[Place, dict[str, Any]]:
        """Where pictures enter, and what a frame there is made of.

        Raises:
            PeftError: a text tower, pictures of another kind or of no fixed size, a border that leaves nothing of them.
        """
        (place, _), *_ = plan.places(("patch_embed",))
        embedding: Any = plan.model.get_submodule(place.module)
        streams = plan.anatomy.streams
        grid = streams.get(place.tower, next(iter(streams.values()))).grid
        if getattr(embedding, "in_channels", None) != CHANNELS:
            raise PeftError(f"{self.name} frames pictures of {CHANNELS} channels, and {place.module} reads none.")
        if grid is None:
            raise PeftError(f"{self.name} needs pictures of one size, and this model takes any.")
        size = tuple(n * step for n, step in zip(grid, embedding.stride, strict=True))
        border = self.border or max(1, round(min(size) * self.share[0] / self.share[1]))
        if 2 * border >= min(size):
            height, width = size
            raise PeftError(
                f"{self.name}: a border of {border} pixels leaves nothing of {height} × {width}: give less than {min(size) // 2}."
            )
        mean, std = (self.mean, self.std) if self.mean and self.std else normalisation_of(plan.model, place.module)
        if len(mean) != CHANNELS or len(std) != CHANNELS or min(std) <= 0:
            raise PeftError(
                f"{self.name} got mean {mean} and std {std}: give {CHANNELS} numbers each, those of std above 0."
            )
        options = plan.options_at(place.module)
        return place, dict(size=size, border=border, mean=mean, std=std, options=options)


def normalisation_of(model: nn.Module, path: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std that a model, or the tower in it, says its pictures are normalised by.

    Raises:
        PeftError: it says none.
    """
    parts = path.split(".")
    for end in range(len(parts)):
        module: Any = model.get_submodule(".".join(parts[:end]))
        config = getattr(module, "preprocess_cfg", None) or getattr(module, "pretrained_cfg", None) or {}
        if config.get("mean") and config.get("std"):
            return tuple(config["mean"]), tuple(config["std"])
    raise PeftError("this model does not say how its pictures are normalised: give mean and std, three numbers each.")


class Frame(Graft):
    """x B 3 H W → the same with pixels on a frame around it: x ← x + factor · (framed(x) − x).

    Args:
        size: H, W.
        border: of the frame.
        mean, std: of the channels.
        shrink: how the picture is brought to what the frame leaves free ("bicubic", "bilinear"); None leaves it under the frame,
            to which the pixels are added.
    """

    def __init__(self, size: tuple[int, int], border: int, mean: Sequence[float], std: Sequence[float], options: dict[str, Any],
                 shrink: str | None = None) -> None:  # fmt: skip
        super().__init__()
        self.size, self.border = size, border
        inside = torch.zeros(size, dtype=torch.bool)
        inside[border:-border, border:-border] = True
        self.count = int((~inside).sum())
        self._keep("index", (~inside).flatten().nonzero()[:, 0].to(options["device"]))
        for name, numbers in (("mean", mean), ("std", std)):
            self._keep(name, torch.tensor(list(numbers)).to(**options)[:, None])
        self.shrinks = shrink is not None
        if shrink is not None:
            for name, side in zip(("rows", "columns"), size, strict=True):
                self._keep(name, resampling(side, side - 2 * border, shrink).to(**options))

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def pixels(self, x: Tensor) -> Tensor:
        """The frame's pixels, 3 n or B 3 n, as they join the normalised picture."""
        raise NotImplementedError(f"{type(self).__name__} must define pixels(x)")

    def before(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            (height, width), (h, w) = self.size, x.shape[-2:]
            raise PeftError(f"this frame is made for pictures of {height} × {width} pixels, not of {h} × {w}.")
        pixels = self.pixels(x)
        canvas = pixels.new_zeros(*pixels.shape[:-1], self.size[0] * self.size[1])
        canvas = canvas.index_copy(-1, self.index, pixels).unflatten(-1, self.size)  # type: ignore[arg-type]
        inner = match(x, canvas)
        if self.shrinks:
            inner = F.pad(self.rows @ inner @ self.columns.t(), [self.border] * 4)  # type: ignore[operator]
        framed = self.watched(inner + canvas).to(x.dtype)
        return framed if self.factor == 1.0 else torch.lerp(x, framed, self.factor)

    def watched(self, framed: Tensor) -> Tensor:
        """The framed picture on its way into the model."""
        return framed

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels 3 n from 0 to 1 as the model reads them."""
        return (pixels - self.mean) / self.std  # type: ignore[operator]


class AddedFrame(Frame):
    """The normalised picture with P (3 n), which starts at 0, added upon its frame."""

    def __init__(self, size: tuple[int, int], border: int, options: dict[str, Any]) -> None:
        super().__init__(size, border, (0.0,) * CHANNELS, (1.0,) * CHANNELS, options)
        self.prompt = nn.Parameter(torch.zeros(CHANNELS, self.count, **options))

    def pixels(self, x: Tensor) -> Tensor:
        return self.prompt


def resampling(side: int, to: int, how: str) -> Tensor:
    """to × side: what shrinks one side of a picture, as `F.interpolate` with antialiasing does."""
    with torch.device("cpu"):
        return F.interpolate(torch.eye(side)[None, None], (to, side), mode=how, antialias=True)[0, 0]


def frame_of(model: nn.Module, method: Method) -> Any:
    """The one frame that a method put into a model."""
    return next(lifecycle.own_grafts(model, method, Frame))
