"""A tiny CLIP with the traits of OpenAI's (ln_pre, QuickGELU, logit scale 100), whose weights are a formula of their names.

The same numbers went into the official classes, so no weights are stored. `noise` is the fractional part of a large multiple
of a sine: alike on every machine to 1e-10, unlike a random generator's.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

NAMES = ["cat", "great white shark", "striped cube on a table", "king-of-the-castle (toy)", "Boston terrier"]
LABELS = torch.tensor([0, 3, 2, 4])
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "clip.json").read_text(encoding="utf-8"))
TEXT = dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=3)
VISION = dict(image_size=32, patch_size=16, width=128, layers=3, head_width=64)


def noise(name: str, *shape: int) -> Tensor:
    """Numbers of mean 0 and variance 1, float64."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    x = torch.sin(count * 12.9898 + zlib.crc32(name.encode()) % 10007 * 78.233) * 43758.5453
    return ((x - x.floor() - 0.5) * 2 * 3**0.5).reshape(shape)


def model(vision: dict[str, Any] = VISION) -> Any:
    """float64, in eval mode."""
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True).double().eval()
    with torch.no_grad():
        for name, p in clip.named_parameters():
            if name == "logit_scale":
                p.fill_(math.log(100))
            elif p.dim() == 1 and "class_embedding" not in name:
                p.copy_(0.1 * noise(name, *p.shape) + (1.0 if name.endswith("weight") else 0.0))
            elif "embedding" in name:
                p.copy_(0.5 * noise(name, *p.shape))
            else:
                inputs = p[0].numel() if p.dim() > 1 and not name.endswith(("proj", "projection")) else p.shape[0]
                p.copy_(noise(name, *p.shape) * (2.0 if "mlp" in name or "attn" in name else 1.0) / inputs**0.5)
        for name, b in clip.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(0.1 * noise(name, *b.shape) + (1.0 if name.endswith("var") else 0.0))
    return clip


def pictures() -> Tensor:
    return noise("images", 4, 3, 32, 32)


def sketch(tensor: Tensor) -> Tensor:
    """Six numbers that stand for a tensor: its products with fixed directions."""
    flat = tensor.detach().double().flatten()
    return noise("probe", 6, flat.numel()) @ flat


def same(found: Any, golden: Any, tolerance: float = 1e-6) -> None:
    """Equal to `tolerance` of the largest value."""
    found, golden = torch.as_tensor(found).detach().double(), torch.as_tensor(golden).double()
    assert found.shape == golden.shape
    assert float((found - golden).abs().max()) <= tolerance * float(golden.abs().max()), (found, golden)
