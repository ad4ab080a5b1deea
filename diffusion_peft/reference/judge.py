"""How well pictures obey their captions, told by a classifier of drawn pictures: `python -m diffusion_peft.reference.judge`.

The judge learns shape, colour, texture, size and ground from drawn captioned pictures (14 minutes on one core). It then looks at
samples of the reference model for held-out captions. Its own accuracy on held-out drawn pictures, and on the same
pictures after the autoencoder, are the ceiling. The figures go into the card, a grid of samples beside its captions
into a PNG file.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft_data.world.captioned import COLOURS, GROUNDS, LABELS, SHAPES, TEXTURE_WORDS, caption, captioned_block
from peft_data.world.render import to_uint8
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from peft_core.jobs.runs.training_state import keep

from . import PIPELINE, load
from .autoencoder import signed
from .sheet import sheet

ASKED = ("shape", "colour", "texture", "size", "ground", "ground colour")
ASKED_SECOND = ("second shape", "second colour", "second texture")
WORDS = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": tuple(TEXTURE_WORDS.values()),
         "ground": tuple(GROUNDS.values()), "ground colour": tuple(COLOURS)}  # fmt: skip


class Judge(nn.Module):
    """Pictures B 3 64 64 in [-1, 1] to one tensor of logits a label, in the order of `LABELS`."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 64, 96, 96, 96), []
        for k, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(before, after, 3, stride=1 if k in (2, 4) else 2, padding=1, bias=False),
                       nn.BatchNorm2d(after), nn.ReLU()]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.Linear(16 * widths[-1], sum(LABELS.values()))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.heads(self.body(images)).split(list(LABELS.values()), 1)


def train_judge(seed: int, steps: int, count: int = 64) -> Judge:
    """A judge of drawn pictures, in evaluation mode; every block of 500 is seen three times."""
    torch.manual_seed(seed)
    judge = Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    pictures, labels = torch.empty(0), torch.empty(0)
    for step in range(steps):
        if step % 24 == 0:
            pictures, labels = captioned_block(step // 24, "judge", seed)
        chosen = torch.randint(len(pictures), (count,))
        logits = judge(signed(pictures[chosen]) + 0.02 * torch.randn(count, 3, 64, 64))
        losses = [F.cross_entropy(part, labels[chosen, k], ignore_index=-1) for k, part in enumerate(logits)]
        torch.stack([loss for loss in losses if loss.isfinite()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    return judge.eval()


@torch.no_grad()
def guesses(judge: Judge, pictures: torch.Tensor) -> torch.Tensor:
    """uint8 N 3 64 64 to the judge's labels N K."""
    parts = [torch.stack([part.argmax(1) for part in judge(signed(some))], 1) for some in pictures.split(250)]
    return torch.cat(parts)


def percent(hits: torch.Tensor) -> float:
    return round(100 * hits.float().mean().item(), 1) if len(hits) else float("nan")


def obedience(guess: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy in percent of each attribute: of the main thing and ground where there is one thing, of the second
    thing where there are two; `all` counts pictures of one thing with every attribute right."""
    column = {name: k for k, name in enumerate(LABELS)}
    one, right = labels[:, column["second shape"]] < 0, guess == labels
    out = {name: percent(right[one][:, column[name]]) for name in ASKED}
    out["all"] = percent(right[one][:, [column[name] for name in ASKED]].all(1))
    pairs = {f"{name} of two": percent(right[~one][:, column[name]]) for name in ("shape", "colour")}
    return out | pairs | {name: percent(right[~one][:, column[name]]) for name in ASKED_SECOND}


def by_word(guess: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy in percent for each word, in pictures of one thing, the worst first."""
    column = {name: k for k, name in enumerate(LABELS)}
    one, out = labels[:, column["second shape"]] < 0, {}
    for name, words in WORDS.items():
        truth, told = labels[one][:, column[name]], guess[one][:, column[name]]
        out |= {f"{name} {word}": percent(told[truth == k] == k) for k, word in enumerate(words) if (truth == k).any()}
    return dict(sorted(out.items(), key=lambda item: item[1]))


@torch.no_grad()
def samples(
    pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int, guidance: float
) -> torch.Tensor:
    """One picture a prompt, uint8 N 3 64 64."""
    pipeline.set_progress_bar_config(disable=True)
    generator, out = torch.Generator().manual_seed(seed), []
    for k in range(0, len(prompts), 25):
        made = pipeline(
            prompts[k : k + 25], num_inference_steps=steps, guidance_scale=guidance, generator=generator,
            output_type="pt", height=64, width=64,
        )  # fmt: skip
        out.append(to_uint8(made[0].float()))
    return torch.cat(out)


def main(arguments: list[str] | None = None) -> None:
    """Trains or loads the judge, draws samples and writes figures and grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--judge", type=Path, help="file that keeps the judge's weights between two calls")
    parser.add_argument("--sheet", type=Path, help="PNG file for a grid of samples")
    parser.add_argument("--count", type=int, default=400, help="samples to judge")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--drawn", type=int, default=1000, help="drawn pictures to judge")
    parser.add_argument("--judge-steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.judge and args.judge.is_file():
        judge = Judge().eval()
        judge.load_state_dict(load_file(args.judge))
    else:
        judge = train_judge(args.seed, args.judge_steps)
        if args.judge:
            keep(judge.state_dict(), args.judge)
    pipeline = load(args.pipeline)
    pictures, labels = captioned_block(0, "judge held out", args.seed, n=args.drawn)
    with torch.no_grad():
        passed = [pipeline.vae.decode(pipeline.vae.encode(some).latent_dist.mean).sample for some in
                  signed(pictures).split(50)]  # fmt: skip
    again = to_uint8(torch.cat(passed) / 2 + 0.5)
    _, asked = captioned_block(0, "prompts", args.seed, n=args.count)
    prompts = [caption(row) for row in asked]
    made = samples(pipeline, prompts, args.seed, args.steps, args.guidance)
    told = guesses(judge, made)
    figures = {
        "judge on held-out drawn pictures, % correct": obedience(guesses(judge, pictures), labels),
        "judge on the same after the autoencoder": obedience(guesses(judge, again), labels),
        "judge on samples": obedience(told, asked),
        "samples": {"count": args.count, "sampler": type(pipeline.scheduler).__name__, "steps": args.steps,
                    "guidance": args.guidance, "seed": args.seed},
        "weakest words, % correct": dict(list(by_word(told, asked).items())[:12]),
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    path = args.pipeline.with_name("card.json")
    if path.is_file():
        card = json.loads(path.read_text(encoding="utf-8")) | {"figures": figures}
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    if args.sheet:
        sheet(made, prompts, args.sheet)


if __name__ == "__main__":
    main()
