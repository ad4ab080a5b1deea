"""A first training, of which a method wants to know what it changes: everything is put back when it has looked."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peft_core.method import Method


@contextmanager
def put_back(parameters: Sequence[nn.Parameter]) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """Gives these parameters, each with its value, which it has again behind the block."""
    before = [(p, p.detach().clone()) for p in parameters]
    try:
        yield before
    finally:
        with torch.no_grad():
            for parameter, start in before:
                parameter.copy_(start)


@contextmanager
def trained_once(
    model: nn.Module, method: Method, losses: Iterable[Tensor], lr: float, passes: int = 1, steps: int | None = None
) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """Within the block all that trains is as AdamW left it after passes over the losses, up to `steps` steps; gives each of
    these parameters with its start, which it has again afterwards."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    with put_back(trained) as before:
        for taken, loss in enumerate((loss for _ in range(passes) for loss in losses), 1):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if taken == steps:
                break
        optimizer.zero_grad(set_to_none=True)
        yield before
