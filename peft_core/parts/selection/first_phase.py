"""A first training, of which a method wants to know what it changes: everything is put back when it has looked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.method import Method


@contextmanager
def trained_once(
    model: nn.Module, method: Method, losses: Iterable[Tensor], lr: float, passes: int = 1, steps: int | None = None
) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """Within the block all that trains is as AdamW left it after passes over the losses, up to `steps` steps; gives each of
    these parameters with its start, which it has again afterwards.

    Raises:
        PeftError: there is no loss.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [(p, p.detach().clone()) for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    taken = 0
    try:
        for loss in (loss for _ in range(passes) for loss in losses):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken += 1
            if taken == steps:
                break
        if passes and not taken:
            raise PeftError(f"{method.name} chooses by the losses that prepare is given, and was given none.")
        optimizer.zero_grad(set_to_none=True)
        yield before
    finally:
        with torch.no_grad():
            for parameter, start in before:
                parameter.copy_(start)
