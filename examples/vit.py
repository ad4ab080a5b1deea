"""A timm ViT adapted in a plain PyTorch loop: scikit-learn's handwritten digits, 8 × 8 pixels enlarged to 32 × 32.

python examples/vit.py                                                    # random weights, without a network
python examples/vit.py --backbone vit_base_patch16_224.augreg_in21k --method vpt --steps 500
"""

import argparse
from typing import Any

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from peft_core import adapt, count_parameters, lifecycle, load_adapter, save_adapter

options = argparse.ArgumentParser()
options.add_argument("--backbone", help="a timm model with weights from its hub")
options.add_argument("--method", default="lora")
options.add_argument("--steps", type=int, default=300)
options.add_argument("--lr", type=float, default=3e-3)
options.add_argument("--out", default="digits_adapter")
args = options.parse_args()


def stock() -> torch.nn.Module:
    torch.manual_seed(0)
    if args.backbone:
        return timm.create_model(args.backbone, pretrained=True, num_classes=10, img_size=32)
    small: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **small)


digits: Any = load_digits()
pictures = F.interpolate(torch.tensor(digits.images).float()[:, None] / 8 - 1, size=32).expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1000:]
model = adapt(stock(), args.method).train()
print(count_parameters(model))


def loss_of(rows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(pictures[rows]), labels[rows])


lifecycle.prepare(model, (loss_of(rows) for rows in train.split(64)))
optimiser = torch.optim.AdamW(lifecycle.parameter_groups(model, args.lr, weight_decay=1e-4))
for step in range(args.steps):
    loss = loss_of(train[torch.randint(len(train), (64,))])
    optimiser.zero_grad()
    (loss + lifecycle.penalty(model)).backward()
    optimiser.step()
    lifecycle.after_step(model, lifecycle.Progress(step + 1, args.steps))
lifecycle.finish(model)
save_adapter(model, args.out)
again = load_adapter(stock(), args.out).eval()
with torch.no_grad():
    right = (again(pictures[test]).argmax(1) == labels[test]).float().mean().item()
print(f"loss {loss.item():.3f}, accuracy {right:.3f} on {len(test)} digits, adapter in {args.out}")
