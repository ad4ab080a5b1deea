"""A search in two levels: weights learn from some batches, what chooses among them from the others, through a step of theirs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def search(
    losses: Iterable[Tensor], weights: Sequence[Tensor], alphas: Sequence[Tensor], inner: torch.optim.Optimizer,
    outer: torch.optim.Optimizer, ahead: float, held_out: float, draw: Callable[[bool], object] = lambda new: None,
    clip: float | None = None,
) -> None:  # fmt: skip
    """Steps of the weights, and of α whenever its share of the batches is due.

    Args:
        losses: of one pass over the data, each computed when it is asked for.
        inner, outer: the optimisers of the weights and of α.
        ahead: length ξ of the step that α looks through.
        held_out: share of the batches that α learns from.
        draw: called before each loss is computed: with True for a new one, with False for the same draws again.
        clip: the longest gradient of the weights, and of α.
    """
    rest, due = iter(losses), 0.0
    with sdpa_kernel(SDPBackend.MATH):  # no other attention is differentiated twice
        while True:
            draw(True)
            loss = next(rest, None)
            if loss is None:
                return
            due += held_out / (1 - held_out)
            gradients = torch.autograd.grad(loss, list(weights), create_graph=due >= 1, allow_unused=True)
            if due >= 1:
                draw(False)
                if (after := unrolled(rest, weights, alphas, gradients, ahead)) is not None:
                    due -= 1
                    _step(outer, alphas, after, clip)
            _step(inner, weights, [None if g is None else g.detach() for g in gradients], clip)


def _step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Any], clip: float | None
) -> None:
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def unrolled(
    losses: Iterator[Tensor], weights: Sequence[Any], alphas: Sequence[Any], gradients: Sequence[Any], ahead: float
) -> list[Tensor] | None:
    """α's gradient on the next batch through a step w' = w − ξ ∇_w along the training loss's (recorded) gradients,
    ∇_α L(w', α) − ξ ∇²_{α,w} L_train(w, α) ∇_{w'} L(w', α); None where no batch is left."""
    old = [p.data for p in weights]
    for p, gradient in zip(weights, gradients, strict=True):
        p.data = p.data if gradient is None else p.data - ahead * gradient.detach()
    loss = next(losses, None)
    found: Any = None
    if loss is not None:
        found = torch.autograd.grad(loss, [*alphas, *weights], allow_unused=True)
    for p, value in zip(weights, old, strict=True):
        p.data = value  # the graph of the training loss holds these
    if found is None:
        return None
    direct, further = found[: len(alphas)], found[len(alphas) :]
    pairs = [(g, v) for g, v in zip(gradients, further, strict=True) if g is not None and v is not None]
    product = torch.stack([(g * v).sum() for g, v in pairs]).sum()
    second = torch.autograd.grad(product, alphas, allow_unused=True)
    none = [torch.zeros_like(alpha) for alpha in alphas]
    return [
        (zero if d is None else d) - ahead * (zero if s is None else s)
        for d, s, zero in zip(direct, second, none, strict=True)
    ]
