"""The drawn world's own detector: shapes, nearness and outlines at every pixel, to see whether a picture obeys.

It learns from drawn pictures whose layers are known (some five minutes on an idle core), once; its weights are kept in the
user's cache folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft_data.world.captioned import SHAPES
from peft_data.world.control import draw_pairs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from peft_core.files import cache_root
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.training_state import keep

CLASSES = 1 + len(SHAPES)
VERSION, STEPS, BATCH, LR = 2, 2000, 24, 4e-3
SCENES = 500
"""Pictures of which thirty steps are trained."""
LEAST_THING = 12
"""Pixels that a thing has at least."""


@dataclass(frozen=True)
class Seen:
    """What is seen in pictures N 3 S S.

    Attributes:
        chances: N C S S, of the background and each shape.
        nearness: N S S in [0, 1]; outlines: N S S, the chance of an outline.
    """

    chances: Tensor
    nearness: Tensor
    outlines: Tensor

    @property
    def classes(self) -> Tensor:
        return self.chances.argmax(1)


class Watcher(nn.Module):
    """Four levels down and up again, with skips, at half the picture's size; four pixels come from each place."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = (width, 2 * width, 3 * width, 4 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((width, *w[:-1]), w, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(w[:0:-1], w[-2::-1], strict=True))
        self.head = nn.Conv2d(width, 4 * (CLASSES + 2), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures B 3 S S in [−1, 1] to logits of classes, of nearness and of outlines, B C+2 S S."""
        x, skips = self.stem(x), []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat((F.interpolate(x, scale_factor=2), skip), 1))
        return F.pixel_shuffle(self.head(x), 2)

    @torch.no_grad()
    def see(self, pictures: Tensor) -> Seen:
        """Pictures uint8 N 3 S S."""
        out = torch.cat([self(part.float() / 127.5 - 1) for part in pictures.split(100)])
        return Seen(out[:, :CLASSES].softmax(1), out[:, CLASSES].sigmoid(), out[:, CLASSES + 1].sigmoid())


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                         nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())  # fmt: skip


def train_watcher(steps: int = STEPS, seed: int = 0) -> Watcher:
    """A watcher of drawn pictures, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        watcher = Watcher()
        optimiser = torch.optim.AdamW(watcher.parameters(), lr=LR, weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps, pct_start=0.1)
        block = draw_pairs("box", SCENES, "watcher", seed)
        for step in range(steps):
            if step and step % 30 == 0:
                block = draw_pairs("box", SCENES, "watcher", seed + 1000 * (step // 30))
            chosen = torch.randint(len(block), (BATCH,))
            grain = 0.04 * torch.randn(BATCH, 3, 1, 1) * torch.randn(BATCH, 3, 64, 64)
            noisy = block.pictures[chosen].float() / 127.5 - 1 + grain
            out = watcher(noisy)
            edges = block.outlines[chosen].float()
            loss = F.cross_entropy(out[:, :CLASSES], block.classes[chosen])
            loss = loss + F.binary_cross_entropy_with_logits(out[:, CLASSES], block.nearness[chosen])
            weight = torch.tensor(3.0)  # outlines are few
            loss = loss + F.binary_cross_entropy_with_logits(out[:, CLASSES + 1], edges, pos_weight=weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return watcher.eval()


def load_watcher() -> Watcher:
    """The watcher of the user's cache folder; it is trained first where there is none."""
    file = cache_root() / "watcher" / f"v{VERSION}.safetensors"
    watcher = Watcher()
    if not file.is_file():
        tell("training the detector of drawn pictures once, some five minutes")
        watcher = train_watcher()
        keep(watcher.state_dict(), file)
    watcher.load_state_dict(load_file(file))
    return watcher.eval()
