"""NOAH's supernet: its training step against the three modules at full width, and the time of a search.

python -m benchmarks.noah_step                      # the shipped ViT, batch 32, and 1,000 candidates on 200 pictures
python -m benchmarks.noah_step --arch vit_small_patch16_224 --batch 8 --candidates 0
"""

import argparse
import time
from random import Random

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.variants import interleaved, machine, ratios
from peft_core import adapt
from vision_peft import reference
from vision_peft.noah.fitness import Fitness
from vision_peft.noah.forms import Forms
from vision_peft.noah.search import Evolution, Score, evolve
from vision_peft.noah.space import Space, Subnet
from vision_peft.noah.supernet import Supernet


class Trainer:
    """A supernet, or the same modules at full width, ready to step."""

    def __init__(self, arch: str, batch: int, space: Space, sampled: bool) -> None:
        torch.manual_seed(0)
        model = reference.load(10) if arch == "reference" else timm.create_model(arch, num_classes=10)
        self.x, self.labels = torch.randn(batch, 3, *model.patch_embed.img_size), torch.arange(batch) % 10
        forms = Forms(model, space)
        self.model = adapt(model, space.method(space.widest(forms.blocks))).train()
        self.supernet = Supernet(self.model, forms) if sampled else None
        self.chance = Random(0)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def logits(self) -> Tensor:
        if self.supernet is None:
            return self.model(self.x)
        self.supernet.choose(self.supernet.forms.space.draw(self.chance, self.supernet.forms.blocks))
        return self.supernet(self.x)

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(), self.labels).backward()
        self.optimizer.step()


def search_seconds(arch: str, space: Space, candidates: int, pictures: int) -> tuple[float, float, int]:
    """Wall and processor seconds of a search, and how many subnets it scored."""
    trainer = Trainer(arch, 1, space, sampled=True)
    assert trainer.supernet is not None
    images = torch.randn(pictures, *trainer.x.shape[1:])
    fitness = Fitness(trainer.supernet, images, torch.arange(pictures) % 10)

    def score(subnets: list[Subnet]) -> list[Score]:
        return [fitness(subnet) for subnet in subnets]

    forms = trainer.supernet.forms
    evolution = Evolution(generations=max(1, candidates // 50))
    wall, own = time.perf_counter(), time.process_time()
    count = sum(map(len, evolve(forms, forms.check_budget(None), evolution, 0, score)))
    return time.perf_counter() - wall, time.process_time() - own, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="reference")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=200)
    args = parser.parse_args()
    space = Space()
    trainers = {
        "three modules at full width": Trainer(args.arch, args.batch, space, sampled=False),
        "supernet, a random subnet a step": Trainer(args.arch, args.batch, space, sampled=True),
    }
    seconds = interleaved({name: trainer.step for name, trainer in trainers.items()}, args.rounds)
    print(f"{args.arch}, batch {args.batch}, float32, {args.rounds} interleaved rounds, {machine()}")
    for name, ratio in ratios(seconds, next(iter(trainers))).items():
        print(f"  {name:34} {ratio:.2f}")
    if args.candidates:
        wall, own, count = search_seconds(args.arch, space, args.candidates, args.pictures)
        print(f"search: {count} subnets on {args.pictures} pictures in {wall:.0f} s ({own:.0f} s of processor time)")


if __name__ == "__main__":
    main()
