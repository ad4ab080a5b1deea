"""Image models on clips: frames folded into the batch with a head over time, or one attention over space and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from peft_data.augment import AUGMENTATIONS, MIRRORING
from peft_data.base import Pictures
from peft_data.video.clips import Clips
from timm.models import VisionTransformer
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, describe
from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.method import Method
from vision_peft.video.joint import JointViT, make_joint
from vision_peft.video.views import over_views


class Classified(nn.Module):
    """Features of pictures or frames, averaged over time, dropped out, and a linear head.

    Pictures B 3 H W → logits B C; clips B T 3 H W, their frames folded into the batch, → B C; views of clips
    B V T 3 H W → the logarithm of the mean over views of the softmax, B C.

    Args:
        image: pictures N 3 H W → features N D: a timm ViT without head, or an open_clip tower.
        head: D → C.
    """

    def __init__(self, image: nn.Module, head: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.image, self.drop, self.head = image, nn.Dropout(dropout), head

    def peft_anatomy(self) -> Anatomy | None:
        """The image model's; the head is this one's, and from pictures to the first block it is not the image model's way."""
        inner = describe(self.image)
        return None if inner is None else dataclasses.replace(inner.under("image"), heads=["head"])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 6:
            return over_views(self, x)
        if x.ndim == 5:
            features = self.image(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        else:
            features = self.image(x)
        return self.head(self.drop(features))


def suited(
    model: nn.Module, about: Backbone, method: Method, pictures: Pictures, settings: Mapping[str, Any]
) -> nn.Module:
    """The classifier as these pictures or clips need it, before the method is put in.

    Raises:
        PeftError: a method for clips on pictures, another number of frames, mirrored clips where direction is the label.
    """
    if not isinstance(pictures, Clips):
        if hasattr(method, "frames"):
            raise PeftError(f"{method.name} works on clips, and these are pictures: choose a method of pictures.")
        return model
    if pictures.directional and settings["augment"] in MIRRORING:
        still = " or ".join(sorted(set(AUGMENTATIONS) - MIRRORING))
        raise PeftError(f"mirrored clips of this data set belong to another class: use --augment {still}.")
    video = settings.get("video")
    return as_video(model, pictures.sampling.frames, about.input_size, video.options if video else {}, method)


def about_clips(pictures: Pictures, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run on clips notes of them, for its card and its results: sampling, views, the model's way with frames."""
    if not isinstance(pictures, Clips):
        return {}
    video = settings.get("video")
    return {"clips": asdict(pictures.sampling), "video": dict(video.options) if video else {}}


def as_video(
    model: nn.Module, frames: int, size: tuple[int, int], video: dict[str, Any], method: Method | None = None
) -> nn.Module:
    """A classifier of pictures as a classifier of clips of T frames.

    Args:
        model: a timm ViT with a head, `Classified`, or a `JointViT` (which stays one).
        frames: T.
        size: height and width.
        video: what `VideoFlags` holds.
        method: the method that will adapt it, whose own `frames` must be T; not needed where it was checked before.

    Raises:
        PeftError: a tubelet that does not divide T, a model without joint attention, another number of frames.
    """
    if method is not None and frames != getattr(method, "frames", frames):
        raise PeftError(
            f"the clips have {frames} frames but {method.name} is set to {method.frames}: give --method.frames {frames} or "  # type: ignore[attr-defined]
            f"--data.frames {method.frames}."  # type: ignore[attr-defined]
        )
    joint = video.get("attention", "frames") == "joint"
    dropout, normed = video.get("dropout", 0.0), video.get("head", "linear") == "batch_norm"
    if isinstance(model, JointViT) or joint:
        if method is not None and hasattr(method, "frames"):
            raise PeftError(
                f"{method.name} runs on frames folded into the batch, not on a model whose attention sees all frames: use "
                "--video.attention frames, or a method of pictures such as adaptformer."
            )
        if not isinstance(model, JointViT):
            model = make_joint(model, frames, size, video.get("tubelet", 2))
        model.set_frames(frames)
        if video.get("norm", "file") == "fresh":  # a run of before has no such word in its card
            model.renew_norm()
        model.head_drop = nn.Dropout(dropout)
        if normed:
            model.add_module("head", with_batch_norm(model.head))
        return model
    if isinstance(model, Classified):
        model.drop = nn.Dropout(dropout)
        model.head = with_batch_norm(model.head) if normed else model.head
        return model
    if not hasattr(model, "reset_classifier"):
        raise PeftError(f"{type(model).__name__} cannot run on clips: choose a vision transformer.")
    head: Any = model.get_classifier()  # type: ignore[operator]
    model.reset_classifier(0)  # type: ignore[operator]
    return Classified(model, with_batch_norm(head) if normed else head, dropout)


def with_batch_norm(head: Any) -> nn.Module:
    """W (x − mean) / √(var + 1e-6) + b: batch normalisation without weights before a linear head, whose W starts at 0.01.

    BatchNorm1d(affine=False, eps=1e-6) and Linear with std 0.01, as ShoufaChen/AdaptFormer's main_video.py and MAE's linear
    probing have it.
    """
    nn.init.trunc_normal_(head.weight, std=0.01)
    norm = nn.BatchNorm1d(head.in_features, affine=False, eps=1e-6)
    return nn.Sequential(norm.to(head.weight.device, head.weight.dtype), head)


def _without_batch_norm(state: dict[str, Tensor], head: Any) -> dict[str, Tensor]:
    """Weights whose head is one linear layer, the batch normalisation's statistics in it."""
    if not isinstance(head, nn.Sequential):
        return state
    parts: list[Any] = list(head)
    norm, linear = parts
    weight = linear.weight / (norm.running_var + norm.eps).sqrt()
    kept = {key: value for key, value in state.items() if not key.startswith(("head.0.", "head.1."))}
    return kept | {"head.weight": weight.detach(), "head.bias": (linear.bias - weight @ norm.running_mean).detach()}


def timm_state(model: nn.Module) -> dict[str, Tensor]:
    """A merged classifier's weights under plain timm's keys; a model of clips is timm's on each frame.

    Raises:
        PeftError: timm has no such model: an open_clip tower, or joint attention made from an image model.
    """
    if isinstance(model, Classified) and isinstance(model.image, VisionTransformer):
        state = {key.removeprefix("image."): value for key, value in model.state_dict().items()}
        return _without_batch_norm(state, model.head)
    if isinstance(model, Classified) or (isinstance(model, JointViT) and not getattr(model, "fixed_positions", False)):
        what = "joint attention over frames" if isinstance(model, JointViT) else "an open_clip tower"
        raise PeftError(f"the merged weights of {what} fit no timm model: use the run folder, or `peft_core.merge`.")
    return _without_batch_norm(model.state_dict(), model.head)
