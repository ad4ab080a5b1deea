"""A timm backbone's feature maps with a head for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from vision_peft.dense.maps import OnMaps, check_maps, image_at, is_plain

LEVELS = 4


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return (
        x
        if tuple(x.shape[-2:]) == tuple(size)
        else F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)
    )


class LinearHead(nn.Module):
    """W LayerNorm(f) + b at each pixel of the maps; those of a hierarchical backbone side by side at the finest's size.

    Args:
        widths: channels of the maps that it reads.
    """

    def __init__(self, widths: Sequence[int], outputs: int, width: int = 0) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(each) for each in widths)
        self.out = nn.Conv2d(sum(widths), outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        return self.out(torch.cat([resized(norm(each), size) for norm, each in zip(self.norms, maps, strict=True)], 1))


def conv(inside: int, out: int, kernel: int = 1) -> nn.Sequential:
    """Convolution, normalisation over channels, GELU: as UPerNet's blocks, without their batch statistics."""
    return nn.Sequential(nn.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False), LayerNorm2d(out), nn.GELU())


def brought(
    maps: Sequence[Tensor], scales: Sequence[float], norms: Iterable[nn.Module], lateral: Iterable[nn.Module]
) -> list[Tensor]:
    """Each map normalised, at `scale` times its size, and at the width of its layer."""
    levels = []
    for norm, layer, scale, each in zip(norms, lateral, scales, maps, strict=True):
        height, width = (max(1, round(side * scale)) for side in each.shape[-2:])
        levels.append(layer(resized(norm(each), (height, width))))
    return levels


def top_down(levels: Sequence[Tensor], smooth: nn.ModuleList) -> list[Tensor]:
    """l_i ← smooth_i(l_i + up(l_{i+1})) from the coarsest but one on; the levels as they are where there is no such layer."""
    levels = list(levels)
    for level in reversed(range(len(smooth))):
        levels[level] = smooth[level](levels[level] + resized(levels[level + 1], levels[level].shape[-2:]))
    return levels


class PyramidHead(nn.Module):
    """UPerNet (Xiao et al., ECCV 2018) with few channels: the coarsest map with its means over 1, 2, 3 and 6 parts a side, then
    top down l_i ← conv(l_i + up(l_{i+1})), all levels fused at the finest. The maps of a plain ViT, all of one size, come to
    4, 2, 1 and ½ times it first, as ViTDet's simple pyramid (Li et al., ECCV 2022).

    Args:
        widths: channels of the four maps, finest first.
        plain: whether they are of one size.
        width: channels inside.
    """

    def __init__(self, widths: Sequence[int], outputs: int, width: int = 64, plain: bool = False) -> None:
        super().__init__()
        self.scales = (4.0, 2.0, 1.0, 0.5) if plain else (1.0,) * len(widths)
        self.norms = nn.ModuleList(LayerNorm2d(each) for each in widths)
        self.lateral = nn.ModuleList(conv(each, width) for each in widths)
        self.pooled = nn.ModuleList(conv(width, width) for _ in range(4))
        self.context = conv(5 * width, width, 3)
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in widths[:-1])
        self.fuse = conv(len(widths) * width, width, 3)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = brought(maps, self.scales, self.norms, self.lateral)
        top, size = levels[-1], levels[-1].shape[-2:]
        parts = [
            resized(part(F.adaptive_avg_pool2d(top, bins)), size)
            for part, bins in zip(self.pooled, (1, 2, 3, 6), strict=True)
        ]
        levels[-1] = self.context(torch.cat([top, *parts], 1))
        levels = top_down(levels, self.smooth)
        finest = levels[0].shape[-2:]
        return self.out(self.fuse(torch.cat([resized(each, finest) for each in levels], 1)))


class Dense(OnMaps):
    """Pictures B 3 H W → outputs B K H W, bilinear from the size of the head's, B K h w."""

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.head(self.maps(x)), (x.shape[-2], x.shape[-1]))


def dense_model(
    load: Callable[..., tuple[nn.Module, Backbone]],
    name: str,
    outputs: int,
    drop_path: float,
    head: str,
    size: int,
    width: int,
) -> tuple[nn.Module, Backbone]:
    """A backbone at a size with a head for every pixel.

    Raises:
        PeftError: a backbone without feature maps, or one that cannot be brought to that size.
    """
    model, about = image_at(load, name, drop_path, size)
    plain, count = is_plain(model), len(model.feature_info)
    levels = (
        sorted({max(0, round(count * (level + 1) / LEVELS) - 1) for level in range(LEVELS)})
        if plain
        else list(range(count))[-LEVELS:]
    )
    if head == "linear" and plain:
        levels = levels[-1:]
    elif len(levels) < LEVELS and head == "pyramid":
        raise PeftError(
            f"{name} has {len(levels)} feature maps and the pyramid takes {LEVELS}: use --dense.head linear."
        )
    widths = [model.feature_info[each]["num_chs"] for each in levels]
    made = LinearHead(widths, outputs) if head == "linear" else PyramidHead(widths, outputs, width, plain)
    check_maps(model, levels, about, name)
    return Dense(model, made, levels), about
