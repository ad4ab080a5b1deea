"""Learnt keys and values in front of an attention's own, as they are or made by an MLP while they train."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.grafts.attention import KeysValues
from peft_core.grafts.shared import Reference
from peft_core.method import Plan
from peft_core.values import Widths

KINDS = ("attn", "cross_attn")


def add_prefixes(plan: Plan, tokens: Widths, hidden: int | None, wrap: Callable[..., nn.Module] | None = None) -> None:
    """P_k, P_v (tokens, W) ~ N(0, 1) at every attention of the plan's blocks, or with `hidden` = m as W₂ tanh(W₁ E + b₁) + b₂: E
    (tokens, D) ~ N(0, 1) and W₁ (m, D) shared by all layers, W₂ (2W, m) each layer's own (the rows of the one matrix of
    XiangLi1999/PrefixTuning).

    Args:
        wrap: (what makes them, width of what the attention receives, options) -> what makes them.
    """
    for sublayer, count, dim in plan.sublayers(KINDS, tokens, limit=1000):
        options, width = plan.options_at(sublayer.body), plan.key_width(sublayer)
        make: nn.Module = Table(torch.randn(2, count, width, **options))
        if hidden is not None:
            # E and W₁ are one for all layers of a width; a U shape's layers have several
            table = plan.shared(f"E_{dim}_{count}", partial(_normal, count, dim, options))
            first = plan.shared(f"W1_{dim}", partial(nn.Linear, dim, hidden, **options))
            make = ByMLP(table, first, hidden, width, options)
        plan.extend_keys_values(sublayer, make if wrap is None else wrap(make, dim, options))


def fold_prefixes(model: nn.Module, method: Any) -> None:
    """When a method with `reparameterize` has trained: keeps P_k and P_v in place of what they are made by."""
    if not method.reparameterize:
        return
    for graft in lifecycle.own_grafts(model, method, KeysValues):
        for owner in list(graft.modules()):
            for name, made in list(owner.named_children()):
                if isinstance(made, ByMLP):
                    setattr(owner, name, Table(torch.stack(made(None))))
    lifecycle.forget_shared(model, method)
    lifecycle.adaptation_of(model, method).method = dataclasses.replace(method, reparameterize=False)


def _normal(rows: int, columns: int, options: dict[str, Any]) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, **options))


class Table(nn.Module):
    """P_k and P_v as they are, 2 P W."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())

    def forward(self, x: Tensor | None) -> tuple[Tensor, ...]:
        return self.values.unbind(0)


class ByMLP(nn.Module):
    """P_k and P_v = W₂ tanh(W₁ E + b₁) + b₂, each P W."""

    def __init__(self, table: Reference, first: Reference, hidden: int, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.shared = (table, first)
        self.second = nn.Linear(hidden, 2 * width, **options)

    def forward(self, x: Tensor | None) -> tuple[Tensor, ...]:
        table, first = (found() for found in self.shared)
        return self.second(torch.tanh(first(table))).chunk(2, -1)
