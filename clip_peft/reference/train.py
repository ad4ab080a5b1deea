"""Trains the reference CLIP on captioned pictures of the drawn world: `python -m clip_peft.reference.train`.

The image tower starts from the reference ViT, the text tower from open_clip's initialisation. The state is written every
few minutes; started again, the script goes on where it was, with the same result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from open_clip import CLIP
from peft_data.world.cache import folder
from peft_data.world.captions_pool import BLOCK, pool
from safetensors.torch import load_file
from torch import nn

from peft_core.jobs.hub.references import reference_of
from peft_core.jobs.runs.training_state import keep, put_back, values_and_moments

from . import WEIGHTS, load, tokenizer
from .contrast import batch, contrast, start_from_vit, text_features
from .evaluate import held_out, table

LARGEST_SCALE = math.log(100)


def optimiser_of(model: CLIP, lr: float, weight_decay: float) -> tuple[torch.optim.AdamW, dict[str, nn.Parameter]]:
    """AdamW that decays matrices only, and the parameters by their place in its order."""
    parameters = list(model.named_parameters())
    decayed = [p for name, p in parameters if p.ndim > 1 and "embedding" not in name]
    rest = [p for name, p in parameters if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True), {
        str(k): parameter for k, parameter in enumerate(decayed + rest)
    }


def fingerprint(path: Path) -> torch.Tensor:
    """The first 8 bytes of a file's SHA-256."""
    return torch.tensor(list(hashlib.sha256(path.read_bytes()).digest()[:8]), dtype=torch.uint8)


def restore(
    path: Path, optimiser: torch.optim.AdamW, parameters: dict[str, nn.Parameter]
) -> tuple[int, torch.Tensor | None]:
    """Puts the written state back, where there is one, and gives the number of steps done and the ViT's fingerprint."""
    if not path.is_file():
        return 0, None
    state = load_file(path)
    step = int(state["step"])
    put_back(state, step, optimiser, parameters)
    return step, state["vit"]


def export(model: CLIP, args: argparse.Namespace, step: int, vit: torch.Tensor) -> None:
    """Writes float16 weights and the card with its accuracies."""
    keep({name: value.half() for name, value in model.state_dict().items()}, args.weights)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": args.seed,
        "steps": step,
        "batch": [args.batch, args.texts],
        "pictures": args.blocks * BLOCK,
        "logit scale": model.logit_scale.exp().item(),
        "image tower started from": f"a reference ViT whose SHA-256 begins with {bytes(vit.tolist()).hex()}",
        "held-out pretraining pictures, % correct": held_out(model, args.seed),
        "world/open, test": table(model, coop_seeds=args.coop_seeds),
        "command": "python -m clip_peft.reference.train",
    }
    text = json.dumps(card, indent=2) + "\n"
    args.weights.with_name("card.json").write_text(text, encoding="utf-8")
    print(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--texts", type=int, default=64, help="captions a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--blocks", type=int, default=320, help=f"blocks of {BLOCK} pictures to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between two writings of the state")
    parser.add_argument("--state", type=Path, default=folder() / "reference-clip.safetensors")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    vit = reference_of("vision_peft").WEIGHTS
    parser.add_argument("--vit", type=Path, default=vit, help="what the image tower starts from")
    parser.add_argument("--coop-seeds", type=int, default=3, help="seeds of CoOp in the card")
    parser.add_argument("--export", action="store_true", help="write weights and card from the state as it is, and end")
    return parser.parse_args()


def main() -> None:
    """Trains, from the last state where there is one, and writes weights and card."""
    args = parsed()
    torch.manual_seed(args.seed)
    model = load(pretrained=False)
    body = reference_of("vision_peft").load(pretrained=False)
    body.load_state_dict({name: value.float() for name, value in load_file(args.vit).items()}, strict=False)
    start_from_vit(model.visual, body)
    optimiser, parameters = optimiser_of(model, args.lr, args.weight_decay)
    start, vit = restore(args.state, optimiser, parameters)
    vit = fingerprint(args.vit) if vit is None else vit
    if args.export:
        return export(model, args, start, vit)
    data, encode = pool(args.blocks, seed=args.seed), tokenizer()
    began, seen = time.monotonic(), 0.0
    for step in range(start, args.steps):
        share = min((step + 1) / 200, 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * share
        images, ids, truth = batch(data, encode, step, args.batch, args.texts, args.seed)
        loss = contrast(model.visual(images), text_features(model, ids), truth, model.logit_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        seen += loss.item()
        done = step + 1
        if done % 20 == 0:
            speed = args.batch * (done - start) / (time.monotonic() - began)
            scale = model.logit_scale.exp().item()
            print(
                f"step {done} of {args.steps} · loss {seen / 20:.3f} · scale {scale:.1f} · {speed:.0f} pictures/s",
                flush=True,
            )
            seen = 0.0
        if done % args.every == 0 or done == args.steps:
            state = values_and_moments(optimiser, parameters)
            keep({"step": torch.tensor(done), "vit": vit} | state, args.state)
            if done % (5 * args.every) == 0:
                print(json.dumps(held_out(model, args.seed) | table(model)), flush=True)
    return export(model, args, args.steps, vit)


if __name__ == "__main__":
    main()
