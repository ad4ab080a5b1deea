"""Trains the reference ViT on the pretraining part of the drawn world: `python -m vision_peft.reference.train`.

Many attributes are told from the class token (the shape of the main thing, species, signs, petals, textures …) and two
from the patch tokens (foreground and nearness of each pixel). Number, distance, position and direction are no labels.
The state is written every few minutes; started again, the script goes on where it was, with the same result.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from peft_data.world.cache import cached, folder
from peft_data.world.pretrain import DENSE, HEADS, pretraining_block
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from peft_core.jobs.runs.training_state import keep, put_back, values_and_moments

from . import CARD, WEIGHTS, load

HELD_OUT = 100_000


class Pretrainer(nn.Module):
    """The ViT with one linear head an attribute on the class token and one dense head on the patch tokens."""

    def __init__(self):
        super().__init__()
        self.vit = load(pretrained=False, weight_init="jax")  # .02 is too small for width 96
        self.heads = nn.Linear(self.vit.num_features, sum(HEADS.values()))
        self.dense = nn.Linear(self.vit.num_features, DENSE * 4)

    def forward(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Images B 3 S S to logits a head (B C each) and dense logits B DENSE S/4 S/4."""
        tokens = self.vit.forward_features(images)
        side = math.isqrt(tokens.shape[1] - 1)
        dense = self.dense(tokens[:, 1:]).view(-1, side, side, DENSE, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return self.heads(tokens[:, 0]).split(list(HEADS.values()), 1), dense.flatten(4, 5).flatten(2, 3)


def pool(blocks: int, first: int, seed: int) -> dict[str, torch.Tensor]:
    """Drawn pictures, labels and dense targets of some blocks, from the cache where they are there."""

    def make() -> dict[str, torch.Tensor]:
        parts = [pretraining_block(first + block, seed) for block in range(blocks)]
        return dict(zip(("pictures", "labels", "dense"), map(torch.cat, zip(*parts, strict=True)), strict=True))

    return cached(f"world/pretraining-{first}-{blocks}-seed{seed}", make)


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 N 3 S S to the model's input."""
    mean, std = (torch.tensor(CARD[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pictures.float() / 255 - mean) / std


def batch(data: dict[str, torch.Tensor], step: int, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """The batch of a step: its pictures with colours inverted and channels swapped at random, labels, dense targets."""
    count = len(data["labels"])
    epoch, start = divmod(step * size, count // size * size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))[start : start + size]
    chance = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))
    images = normalised(data["pictures"][order])
    images = images * torch.where(torch.rand(size, 1, 1, 1, generator=chance) < 0.5, -1.0, 1.0)
    swap = torch.rand(size, 3, generator=chance).argsort(1)
    images = images[torch.arange(size)[:, None], swap]
    return images, data["labels"][order], data["dense"][order]


def loss_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Sum of cross entropies over a batch's known attributes, per picture, and of the dense terms."""
    logits, maps = model(images)
    total = torch.zeros(())
    for k, head in enumerate(logits):
        total = total + F.cross_entropy(head, labels[:, k], ignore_index=-1, reduction="sum", label_smoothing=0.05)
    known = (dense < 255).float()
    cross = F.binary_cross_entropy_with_logits(maps, (dense.float() / 200).clamp(max=1), reduction="none")
    return total / len(images) + 2.0 * (cross * known).sum() / known.sum().clamp(min=1)


@torch.inference_mode()
def accuracies(model: Pretrainer, seed: int) -> dict[str, float]:
    """Accuracy in percent for each attribute on held-out pretraining pictures, and the mean error of the dense maps."""
    model.eval()
    data = pool(16, HELD_OUT, seed)
    outputs = [model(images) for images in normalised(data["pictures"]).split(400)]
    out = {}
    for k, name in enumerate(HEADS):
        label = data["labels"][:, k]
        guess = torch.cat([logits[k] for logits, _ in outputs]).argmax(1)
        out[name] = round(100 * (guess == label)[label >= 0].float().mean().item(), 1)
    known, maps = data["dense"] < 255, torch.cat([maps for _, maps in outputs]).sigmoid()
    out["dense error"] = round((maps - data["dense"].float() / 200).abs()[known].mean().item(), 4)
    model.train()
    return out


def main() -> None:
    """Trains, from the last state where there is one, and writes weights and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=18_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--blocks", type=int, default=1280, help="blocks of 200 pictures to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1000, help="steps between two writings of the state")
    parser.add_argument("--state", type=Path, default=folder() / "reference-vit.safetensors")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Pretrainer()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    parameters, start = {str(k): parameter for k, parameter in enumerate(weights + rest)}, 0
    if args.state.is_file():
        state = load_file(args.state)
        start = int(state["step"])
        put_back(state, start, optimiser, parameters)
    data = pool(args.blocks, 0, args.seed)
    began, seen = time.monotonic(), 0.0
    for step in range(start, args.steps):
        share = min((step + 1) / 300, 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * share
        torch.manual_seed(args.seed + step)
        loss = loss_of(model, *batch(data, step, args.batch, args.seed))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        seen += loss.item()
        done = step + 1
        if done % 200 == 0:
            speed = args.batch * (done - start) / (time.monotonic() - began)
            print(f"step {done} of {args.steps} · loss {seen / 200:.3f} · {speed:.0f} pictures/s", flush=True)
            seen = 0.0
        if done % args.every == 0 or done == args.steps:
            keep({"step": torch.tensor(done)} | values_and_moments(optimiser, parameters), args.state)
            keep({name: value.half() for name, value in model.vit.state_dict().items()}, args.weights)
            if done % (2 * args.every) == 0 or done == args.steps:
                print(json.dumps(accuracies(model, args.seed)), flush=True)
    figures = accuracies(model, args.seed)
    card = CARD | {
        "parameters": sum(p.numel() for p in model.vit.parameters()),
        "seed": args.seed,
        "steps": args.steps,
        "batch": args.batch,
        "pictures": args.blocks * 200,
        "held-out pretraining pictures, % correct": figures,
        "command": "python -m vision_peft.reference.train",
    }
    args.weights.with_name("card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
