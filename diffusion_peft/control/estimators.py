"""Depth and pose of pictures by named models of the hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffusion_peft.base.loading import first_line, quiet_loading
from peft_core.errors import PeftError
from peft_core.jobs.hub.reach import in_cache, must_reach

LIMBS = ((5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5),
         (0, 6))  # fmt: skip
"""Pairs of COCO's joints."""


@cache
def _loaded(name: str, kind: str) -> tuple[Any, Any]:
    import transformers

    makers: dict[str, tuple[Callable, Callable]] = {
        "depth": (
            transformers.AutoImageProcessor.from_pretrained,
            transformers.AutoModelForDepthEstimation.from_pretrained,
        ),
        "pose": (
            transformers.AutoImageProcessor.from_pretrained,
            transformers.VitPoseForPoseEstimation.from_pretrained,
        ),
    }
    try:
        if not in_cache(name, "config.json"):
            must_reach(name, name)
        with quiet_loading():
            processor, model = (make(name) for make in makers[kind])
    except (OSError, ValueError) as error:
        raise PeftError(
            f"the {kind} of a picture needs {name}, which cannot be had ({first_line(error)}): check the network, or give the "
            "conditions as files."
        ) from error
    return processor, model.eval()


@torch.no_grad()
def estimate_depth(picture: Image.Image, name: str) -> Image.Image:
    """Near is bright; scaled to the picture's own least and greatest."""
    processor, model = _loaded(name, "depth")
    near = model(**processor(images=picture, return_tensors="pt")).predicted_depth[None]
    near = torch.nn.functional.interpolate(near, size=picture.size[::-1], mode="bicubic")[0, 0]
    near = (near - near.min()) / (near.max() - near.min()).clamp(min=1e-6)
    return Image.fromarray((near.numpy() * 255).round().astype(np.uint8)).convert("RGB")


@torch.no_grad()
def estimate_pose(picture: Image.Image, name: str) -> Image.Image:
    """Limbs between the joints of the person that fills the picture, coloured, on black."""
    processor, model = _loaded(name, "pose")
    whole = [[[0.0, 0.0, float(picture.width), float(picture.height)]]]
    out = model(**processor(picture, boxes=whole, return_tensors="pt"))
    person = processor.post_process_pose_estimation(out, boxes=whole)[0][0]
    sheet = Image.new("RGB", picture.size)
    pen = ImageDraw.Draw(sheet)
    for number, (a, b) in enumerate(LIMBS):
        if min(person["scores"][a], person["scores"][b]) > 0.3:
            ends = [tuple(person["keypoints"][joint].tolist()) for joint in (a, b)]
            pen.line(ends, fill=f"hsl({360 * number // len(LIMBS)}, 100%, 50%)", width=max(2, picture.width // 64))
    return sheet
