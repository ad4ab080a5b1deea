"""A small model and its space, and a finished search."""

from pathlib import Path
from random import Random

import pytest
import timm
import torch
from torch import nn

from vision_peft.noah.forms import Forms
from vision_peft.noah.space import Space, Subnet

SMALL = {
    "recipe": None, "space": {"name": "vtab", "dims": [1, 2], "depths": [2, 6]}, "supernet": {"epochs": 2, "lr": 1e-2},
    "search": {"population": 8, "generations": 3, "parents": 3, "mutations": 4, "crossovers": 3},
    "retrain": {"epochs": 2, "lr": 1e-2}, "training": {"batch_size": 12},
}  # fmt: skip


@pytest.fixture(scope="session")
def searched(small_data: str, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `noah --baselines`."""
    from vision_peft.noah.command import noah

    out = tmp_path_factory.mktemp("noah") / "whole"
    noah(data=small_data, backbone=tiny_backbone, out=str(out), baselines=True, budget=BUDGET, **SMALL)
    return out


BUDGET = 4000
SPACE = Space(dims=(1, 2), depths=(2, 4))


def stock() -> nn.Module:
    """Four blocks of width 48, five classes."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=48, num_heads=3, depth=4, num_classes=5
    ).eval()


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def forms() -> Forms:
    return Forms(stock(), SPACE)


def some(space: Space, count: int, blocks: int = 4) -> list[Subnet]:
    chance = Random(0)
    return [space.draw(chance, blocks) for _ in range(count)]
