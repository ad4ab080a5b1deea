"""An open_clip model adapted in a plain PyTorch loop, both towers, to pictures of coloured squares and what they show.

python examples/clip.py                                                   # random weights, without a network
python examples/clip.py --model ViT-B-32 --pretrained openai --steps 100
"""

import argparse
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from peft_core import adapt, count_parameters, lifecycle, merge

options = argparse.ArgumentParser()
options.add_argument("--model", help="a model of open_clip")
options.add_argument("--pretrained", help="its weights")
options.add_argument("--method", default="lora")
options.add_argument("--steps", type=int, default=150)
options.add_argument("--lr", type=float, default=3e-3)
args = options.parse_args()
torch.manual_seed(0)
size = 224 if args.model else 32
if args.model:
    model: Any = open_clip.create_model(args.model, pretrained=args.pretrained)
else:
    vision = open_clip.CLIPVisionCfg(image_size=32, layers=3, width=64, head_width=16, patch_size=8)
    model = open_clip.CLIP(64, vision, open_clip.CLIPTextCfg(width=64, heads=4, layers=2))
COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1), "white": (1, 1, 1)}
texts = open_clip.SimpleTokenizer()([f"a photo of a {colour} square" for colour in COLOURS])


def draw(colours: torch.Tensor) -> torch.Tensor:
    """Squares at random places on noise, B 3 H W."""
    pictures = torch.randn(len(colours), 3, size, size) * 0.3
    for picture, colour in zip(pictures, torch.tensor(list(COLOURS.values())).float()[colours], strict=True):
        top, left = torch.randint(size // 2, (2,)).tolist()
        picture[:, top : top + size // 2, left : left + size // 2] = colour[:, None, None]
    return pictures


def logits(colours: torch.Tensor) -> torch.Tensor:
    return 20 * model.encode_image(draw(colours), normalize=True) @ model.encode_text(texts, normalize=True).T


adapt(model, args.method).train()
print(count_parameters(model))
lifecycle.prepare(model, (F.cross_entropy(logits(c), c) for c in torch.randint(5, (4, 32))))
optimiser = torch.optim.AdamW(lifecycle.parameter_groups(model, args.lr))
for step in range(args.steps):
    loss = F.cross_entropy(logits(colours := torch.randint(5, (32,))), colours)
    optimiser.zero_grad()
    (loss + lifecycle.penalty(model)).backward()
    optimiser.step()
    lifecycle.after_step(model, lifecycle.Progress(step + 1, args.steps))
lifecycle.finish(model)
with torch.no_grad():
    right = (logits(colours := torch.randint(5, (200,))).argmax(1) == colours).float().mean().item()
print(f"loss {loss.item():.3f}, accuracy {right:.3f}; merged: {type(merge(model.eval())).__name__}")
