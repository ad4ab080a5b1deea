"""NOAH's supernet: its training step against the three modules at full width, and the time of a search.

python -m benchmarks.noah_step                      # the shipped ViT, batch 32, and 1,000 candidates on 200 pictures
python -m benchmarks.noah_step --arch vit_small_patch16_224 --batch 8 --candidates 0
"""

import time
from random import Random

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import CPU, clock, interleaved, machine, options, pictures, ratios, write_ratios
from peft_core import adapt
from vision_peft import reference
from vision_peft.noah.fitness import Fitness
from vision_peft.noah.forms import Forms
from vision_peft.noah.search import Evolution, Score, evolve
from vision_peft.noah.space import Space, Subnet
from vision_peft.noah.supernet import Supernet


class Trainer:
    """A supernet, or the same modules at full width, ready to step."""

    def __init__(self, arch: str, batch: int, space: Space, sampled: bool, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        model = reference.load(10) if arch == "reference" else timm.create_model(arch, num_classes=10)
        self.x = pictures(model, batch, device)
        self.labels = torch.arange(batch, device=device) % 10
        forms = Forms(model, space)
        self.model = adapt(model, space.method(space.widest(forms.blocks))).to(device).train()
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


def search_seconds(
    arch: str, space: Space, candidates: int, pictures: int, device: torch.device
) -> tuple[float, float, int]:
    """Wall and processor seconds of a search, and how many subnets it scored."""
    trainer = Trainer(arch, 1, space, sampled=True, device=device)
    assert trainer.supernet is not None
    images = torch.randn(pictures, *trainer.x.shape[1:]).to(device)
    fitness = Fitness(trainer.supernet, images, torch.arange(pictures, device=device) % 10)

    def score(subnets: list[Subnet]) -> list[Score]:
        return [fitness(subnet) for subnet in subnets]

    forms = trainer.supernet.forms
    evolution = Evolution(generations=max(1, candidates // 50))
    now = clock(device)
    wall, own = now(), time.process_time()
    count = sum(map(len, evolve(forms, forms.check_budget(None), evolution, 0, score)))
    return now() - wall, time.process_time() - own, count


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="reference")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=200)
    args = parser.parse_args()
    space = Space()
    trainers = {
        "three modules at full width": Trainer(args.arch, args.batch, space, sampled=False, device=args.device),
        "supernet, a random subnet a step": Trainer(args.arch, args.batch, space, sampled=True, device=args.device),
    }
    seconds = interleaved({name: trainer.step for name, trainer in trainers.items()}, args.rounds, args.device)
    part = f"NOAH on {args.arch}, batch {args.batch}, float32"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    for name, ratio in ratios(seconds, next(iter(trainers))).items():
        print(f"  {name:34} {ratio:.2f}")
        write_ratios(args.ratios, part, name, time=ratio)
    if args.candidates:
        wall, own, count = search_seconds(args.arch, space, args.candidates, args.pictures, args.device)
        print(f"search: {count} subnets on {args.pictures} pictures in {wall:.0f} s ({own:.0f} s of processor time)")


if __name__ == "__main__":
    main()
