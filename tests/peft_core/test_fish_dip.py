"""FISH-DIP's choices, and what becomes of entries that leave the mask."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import PeftError, lifecycle
from peft_core.lifecycle import Progress
from peft_core.method import Method
from peft_core.parts.selection.importance import sites_of
from tests.peft_core.test_selective import batches, chosen, linears, losses, method_of, prepared, top


def test_fish_dip_chooses_by_the_worst_samples_again_and_what_left_stays():
    model, method, stock = prepared("fish_dip", entries=300, targets=("qkv", "proj", "fc1", "fc2"), samples=2, every=2)
    single = [(x[n : n + 1], y[n : n + 1]) for x, y in batches() for n in range(3)]
    optimizer = torch.optim.AdamW(lifecycle.parameter_groups(model, 1e-2, 0.0))

    def expected() -> list[set[int]]:
        """The largest squares of the two worst samples, at the weights as they are."""
        own = dict(model.named_parameters())
        for layer, changed in zip(linears(stock), linears(model), strict=True):
            (graft,) = changed.peft.fish_dip.children()
            layer.weight.data = graft(own[f"{names[id(changed)]}.weight"]).detach()
            layer.bias.data = graft.bias(own[f"{names[id(changed)]}.bias"]).detach()
        stock.head.load_state_dict(model.head.state_dict())
        worst = sorted(single, key=lambda pair: -F.cross_entropy(stock(pair[0]), pair[1]).item())[:2]
        parameters = [p for layer in linears(stock) for p in (layer.weight, layer.bias)]
        scores = [torch.zeros_like(p) for p in parameters]
        for x, y in worst:
            for score, g in zip(scores, torch.autograd.grad(F.cross_entropy(stock(x), y), parameters), strict=True):
                score += g.square()
        return top(scores, 300)

    names = {id(module): name for name, module in model.named_modules()}
    first = [set(part) for parts in chosen(model, method) for part in parts]
    assert first == expected()
    for step in range(1, 5):
        before = {(n, i): v for n, i, v in entries(model)}
        optimizer.zero_grad()
        F.cross_entropy(model(single[0][0]), single[0][1]).backward()
        lifecycle.before_step(model)
        optimizer.step()
        if step == 2:
            assert all(len(optimizer.state[v]["exp_avg"]) == len(v) for v in method._values(model))
            with pytest.raises(PeftError, match="looks at the training data again"):
                lifecycle.after_step(model, Progress(step, 8))
            lifecycle.after_step(model, Progress(step, 8), losses(model), optimizer)
            assert all(len(optimizer.state[v]["exp_avg"]) == len(v) for v in method._values(model) if len(v))
            trains = [set(part) for part in trained(model, method)]
            assert trains == expected() and trains != first
            held = [set(part) for parts in chosen(model, method) for part in parts]
            assert held == [one | other for one, other in zip(first, trains, strict=True)]
        elif step < 4:
            lifecycle.after_step(model, Progress(step, 8), losses(model), optimizer)
    lifecycle.after_step(model, Progress(3, 8))
    after = {(n, i): v for n, i, v in entries(model)}
    moving = {(n, i) for n, part in enumerate(trains) for i in part}
    assert before.keys() == after.keys()
    assert all(after[key] == value for key, value in before.items() if key not in moving)
    assert any(after[key] != value for key, value in before.items())


def entries(model: nn.Module) -> Iterator[tuple[int, int, float]]:
    method: Any = method_of(model)
    parts = [indices for site in sites_of(model, method) for indices in site.graft.entries()]
    for n, (indices, values) in enumerate(zip(parts, method._values(model), strict=True)):
        yield from ((n, i, v) for i, v in zip(indices.tolist(), values.tolist(), strict=True))


def trained(model: nn.Module, method: Method) -> Iterator[list[int]]:
    parts = [indices for site in sites_of(model, method) for indices in site.graft.entries()]
    for indices, trains in zip(parts, lifecycle.memory(model, method)["trains"], strict=True):
        yield indices[trains].tolist()
