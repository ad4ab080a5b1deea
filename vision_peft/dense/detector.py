"""Feature maps with FCOS's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from vision_peft.dense.maps import OnMaps, check_maps, image_at, is_plain
from vision_peft.dense.model import brought, conv, top_down

LEVELS, CONVOLUTIONS = 3, 2
GROUP = 32
"""Of FCOS's group normalisation: a head's width is a multiple of it."""


class BoxHead(nn.Module):
    """torchvision's FCOS head on maps of one width. `linear`: LayerNorm and one layer a pixel bring them to it, and the head has
    no convolutions of its own; `pyramid`: top down besides, l_i ← conv(l_i + up(l_{i+1})), and two convolutions (four there).

    Args:
        widths: channels of the maps, finest first.
        scales: by which each is resized first: a plain ViT's one map to twice, once and half its size, as ViTDet's pyramid.
        classes: K.
    """

    def __init__(
        self, widths: Sequence[int], scales: Sequence[float], classes: int, width: int = 64, pyramid: bool = False
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.norms = nn.ModuleList(LayerNorm2d(each) for each in widths)
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in widths[:-1] if pyramid)
        self.fcos = FCOSHead(width, 1, classes, CONVOLUTIONS if pyramid else 0)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Outputs as `vision_peft.dense.boxes` has them, of pictures of this height and width."""
        maps = list(maps) * (len(self.scales) // len(maps))  # one map of a plain ViT at several sizes
        levels = top_down(brought(maps, self.scales, self.norms, self.lateral), self.smooth)
        found = self.fcos(levels)
        parts = [found["cls_logits"], found["bbox_ctrness"], found["bbox_regression"]]
        around = torch.cat([places_of(each.shape[-2:], size, each.device) for each in levels])
        return torch.cat([*(each.float() for each in parts), around.expand(len(parts[0]), -1, -1)], -1)


def places_of(shape: Sequence[int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Where each pixel of a map stands in a picture, `h·w 4`: its centre (x, y) and the strides along both, the same numbers
    for a whole map, as maps are told apart by them."""
    stride = torch.tensor([size[1] / shape[1], size[0] / shape[0]], device=device, dtype=torch.float32)
    rows, columns = (torch.arange(each, device=device, dtype=torch.float32) for each in shape)
    top, left = torch.meshgrid(rows, columns, indexing="ij")
    centres = (torch.stack([left, top], -1).flatten(0, 1) + 0.5) * stride
    return torch.cat([centres, stride.expand_as(centres)], 1)


class Detector(OnMaps):
    """Pictures B 3 H W → outputs B A K+9 (`vision_peft.dense.boxes`)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x), (x.shape[-2], x.shape[-1]))


def detector(
    load: Callable[..., tuple[nn.Module, Backbone]],
    name: str,
    outputs: int,
    drop_path: float,
    head: str,
    size: int,
    width: int,
) -> tuple[nn.Module, Backbone]:
    """A backbone at a size with a head for boxes of `outputs` classes.

    Raises:
        PeftError: a backbone without feature maps, one that cannot be brought to that size, or an odd width.
    """
    if width % GROUP:
        raise PeftError(f"--dense.width {width} of a detector must be a multiple of {GROUP}: choose 64, 128 or 256.")
    model, about = image_at(load, name, drop_path, size)
    plain = is_plain(model)
    levels = list(range(len(model.feature_info)))[-1 if plain else -LEVELS :]
    scales = (2.0, 1.0, 0.5) if plain and head == "pyramid" else (1.0,) * len(levels)
    widths = [model.feature_info[each]["num_chs"] for each in levels] * (len(scales) // len(levels))
    check_maps(model, levels, about, name)
    made = Detector(model, BoxHead(widths, scales, outputs, width, head == "pyramid"), levels)
    return made, about
