"""A bottleneck behind a tower, mixed with what it reads: α · relu(W₂ relu(W₁ x)) + (1 − α) · x, no biases."""

import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip


class FeatureAdapter(nn.Module):
    """W₁ (E/r, E) and W₂ (E, E/r) on features E that are not normalised."""

    def __init__(self, clip: Clip, reduction: int, ratio: float):
        super().__init__()
        self.down, self.up = bottleneck(clip, reduction)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return mixed(x, self.down, self.up, self.ratio)


def bottleneck(clip: Clip, reduction: int) -> tuple[nn.Linear, nn.Linear]:
    features, own = clip.tower.features, {"bias": False, "device": clip.tower.device}
    hidden = max(1, features // reduction)
    return nn.Linear(features, hidden, **own), nn.Linear(hidden, features, **own)


def mixed(x: Tensor, down: nn.Linear, up: nn.Linear, ratio: float) -> Tensor:
    x = x.to(down.weight.dtype)
    return ratio * F.relu(up(F.relu(down(x)))) + (1 - ratio) * x
