"""What the reference CLIP can do: `python -m clip_peft.reference.evaluate` prints its zero-shot accuracies on
`world/open/*`, with `--coop` also CoOp's after training on 16 pictures of each base class."""

from __future__ import annotations

import argparse
import json
import math
from statistics import mean

import torch
from open_clip import CLIP
from peft_data import ClassificationData, Pictures, open_data
from peft_data.world.captions_pool import pool
from peft_data.world.named import COLUMNS
from peft_data.world.open import SETS
from peft_data.world.phrases import HELD_BACK, WORDS
from torch import Tensor

from clip_peft.open_vocabulary import OpenVocabulary

from . import load, tokenizer
from .contrast import normalised

HELD_OUT = 100_000
"""First block of the pictures that no training sees."""


def accuracy(clip: OpenVocabulary, features: Tensor, labels: Tensor) -> float:
    """Percent of the features N E whose class is found, labels N counted among the clip's own classes."""
    with torch.inference_mode():
        return 100 * (clip.logits(features).argmax(1) == labels).float().mean().item()


@torch.inference_mode()
def features_of(clip: OpenVocabulary, pictures: Pictures) -> Tensor:
    """Image features N E, not normalised."""
    return torch.cat([clip.encode(normalised(part)) for part in torch.as_tensor(pictures.items).split(256)])


def held_out(model: CLIP, seed: int = 0, blocks: int = 4) -> dict[str, float]:
    """Percent of held-out pretraining pictures for which the right word of an attribute is chosen among all known."""
    data, out = pool(blocks, HELD_OUT, seed), {}
    for name, text in (("noun", "a photo of a {}."), ("colour", "a {} thing"), ("texture", "a {} thing")):
        known = [word for word in WORDS[name] if word not in HELD_BACK[name]]
        place = torch.tensor([known.index(word) if word in known else -1 for word in WORDS[name]])
        label = data["attributes"][:, COLUMNS.index(name)]
        shown = label >= 0
        clip = OpenVocabulary(model, "zero_shot", known, tokenizer(), template=text).eval()
        features = features_of(clip, Pictures(data["pictures"][shown], label[shown]))
        out[name] = round(accuracy(clip, features, place[label[shown]]), 1)
    return released(model, out)


def released(model: CLIP, result: dict) -> dict:
    """`result`, after the model is as it was before it was frozen for a test."""
    model.requires_grad_(True).train()
    return result


def zero_shot(model: CLIP, data: ClassificationData, split: str = "test") -> dict[str, float]:
    """Accuracy in percent on base classes among themselves, new ones among themselves, and all among all."""
    clip = OpenVocabulary(model, "zero_shot", data.class_names, tokenizer()).eval()
    pictures = getattr(data, split)
    return scores(clip, features_of(clip, pictures), pictures.labels, data.class_names)


def scores(clip: OpenVocabulary, features: Tensor, labels: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """`base`, `new` and `all`, see zero_shot."""
    half, out = math.ceil(len(names) / 2), {}
    for part, first, last in (("base", 0, half), ("new", half, len(names)), ("all", 0, len(names))):
        rows = (labels >= first) & (labels < last)
        out[part] = round(accuracy(clip.set_classes(names[first:last]), features[rows], labels[rows] - first), 1)
    return out


def coop(
    model: CLIP, data: ClassificationData, seed: int, shots: int = 16, epochs: int = 50, lr: float = 2e-3
) -> dict[str, float]:
    """CoOp (16 tokens, SGD, cosine, batch 32) on `shots` pictures of each base class, then `scores` on test."""
    names, chance = data.class_names, torch.Generator().manual_seed(seed)
    half = math.ceil(len(names) / 2)
    torch.manual_seed(seed)
    clip = OpenVocabulary(model, "coop", names[:half], tokenizer())
    rows = torch.cat(
        [
            (found := (data.train.labels == label).nonzero()[:, 0])[
                torch.randperm(len(found), generator=chance)[:shots]
            ]
            for label in range(half)
        ]
    )
    features, labels = features_of(clip, data.train.subset(rows)).clone(), data.train.labels[rows]
    optimiser = torch.optim.SGD(clip.trainable(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for chosen in torch.randperm(len(rows), generator=chance).split(32):
            loss = clip.learner.loss(features[chosen], labels[chosen], None)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    clip.eval()
    return scores(clip, features_of(clip, data.test), data.test.labels, names)


def table(model: CLIP, coop_seeds: int = 0, split: str = "test") -> dict[str, dict]:
    """Set → zero-shot scores, and CoOp's as mean over seeds 1, 2, … where `coop_seeds` is not 0."""
    out: dict[str, dict] = {}
    for task in SETS:
        data = open_data(f"world/open/{task}")
        out[task] = {"zero-shot": zero_shot(model, data, split)}
        runs = [coop(model, data, seed + 1) for seed in range(coop_seeds)]
        if runs:
            out[task]["coop"] = {part: round(mean(run[part] for run in runs), 1) for part in runs[0]}
            out[task]["coop, each seed"] = {part: [run[part] for run in runs] for part in runs[0]}
    return released(model, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coop", type=int, default=0, metavar="SEEDS", help="train CoOp with so many seeds, too")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    args = parser.parse_args()
    print(json.dumps(table(load(), args.coop, args.split), indent=2))


if __name__ == "__main__":
    main()
