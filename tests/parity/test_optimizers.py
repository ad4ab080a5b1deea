"""Five steps of jiaweizzhao/GaLore's AdamW (2cc66f8; matrices tall, wide and square, a new projection every other step) and three
of princeton-nlp/MeZO's (552cb1b) on the same numbers, in float64."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from peft_core.optimizers.galore import GaLore
from peft_core.optimizers.mezo import MeZO
from tests.parity.golden import golden, values


def test_galore() -> None:
    wanted = {key: tensor for key, tensor in golden("optimizers").items() if key.startswith("galore.")}
    own = {key: nn.Parameter(values(key[7:], tensor.shape)) for key, tensor in wanted.items()}
    ordinary = [own["galore.vector"], own["galore.head"]]
    others = [own[f"galore.{name}"] for name in ("tall", "wide", "square")]
    groups = [{"params": ordinary, "rank": 0}, {"params": others}]
    optimizer = GaLore(groups, lr=0.01, rank=2, gap=2, scale=4.0, weight_decay=0.1)
    for step in range(5):
        for key, parameter in own.items():
            parameter.grad = values(f"{key[7:]}{step}", parameter.shape)
        optimizer.step()
    for key, tensor in wanted.items():
        assert torch.allclose(own[key], tensor, atol=1e-9, rtol=0), key


def test_mezo() -> None:
    wanted = golden("optimizers")
    seeds: Iterator[int] = iter(wanted.pop("mezo.seeds").tolist())

    class Seeded(MeZO):
        @staticmethod
        def seed_of(seed: int, step: int) -> int:
            return next(seeds)

    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            parameter.copy_(values(f"mezo.{key}", parameter.shape))
    decayed = [p for p in net.parameters() if p.dim() > 1]
    groups = [{"params": [p]} if p.dim() > 1 else {"params": [p], "weight_decay": 0.0} for p in net.parameters()]
    assert len(decayed) == 2
    optimizer = Seeded(groups, lr=0.05, eps=1e-2, weight_decay=0.1)
    for step in range(3):
        x = values(f"mezo.x{step}", (3, 4))
        optimizer.step(lambda x=x: F.cross_entropy(net(x), torch.tensor([0, 2, 1])))
    for key, parameter in net.named_parameters():
        assert torch.allclose(parameter, wanted[f"mezo.{key}"], atol=1e-9, rtol=0), key
