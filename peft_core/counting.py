"""What an adaptation costs: parameters, floating-point operations, bytes kept for backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from peft_core.attach import Record, grafts_named, inserted_by, is_inserted, unwrapped
from peft_core.grafts.head import OwnHead
from peft_core.kernels.quantised import numbers_in
from peft_core.stock import head_of


@dataclass(frozen=True)
class ParameterCount:
    """Parameters apart: `inserted` were added or are changed by a method (the head excluded)."""

    inserted: int
    head: int
    total: int
    trainable: int
    by_method: dict[str, int]

    def __str__(self) -> str:
        share = 100 * self.inserted / max(1, self.total - self.head)
        return f"{self.inserted:,} inserted ({share:.2f} %), {self.head:,} head, {self.total:,} in all"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model, adapted or not; works on the meta device."""
    model = unwrapped(model)
    record: Record = model.__dict__.get("_peft_record") or Record()
    parameters = dict(model.named_parameters())
    own_heads = [
        graft for name in record.adaptations for *_, graft in grafts_named(model, name) if isinstance(graft, OwnHead)
    ]
    in_head = {id(p) for graft in own_heads for p in graft.parameters()}
    in_head |= {id(value) for value in head_of(model).values() if isinstance(value, nn.Parameter)}
    by_method = dict.fromkeys(record.adaptations, 0)
    for key, parameter in parameters.items():
        if is_inserted(key) and id(parameter) not in in_head:
            by_method[inserted_by(key)] += parameter.numel()
    changed: set[str] = set()
    for name, adaptation in record.adaptations.items():
        by_method[name] += sum(parameters[key].numel() for key in adaptation.trained if key in parameters)
        changed.update(adaptation.trained)
    inserted = [p for key, p in parameters.items() if (is_inserted(key) or key in changed) and id(p) not in in_head]
    sizes = numbers_in(model)
    return ParameterCount(
        inserted=sum(p.numel() for p in inserted),
        head=sum(p.numel() for p in parameters.values() if id(p) in in_head),
        total=sum(sizes.get(id(p), p.numel()) for p in parameters.values()),
        trainable=sum(p.numel() for p in parameters.values() if p.requires_grad),
        by_method=by_method,
    )


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that `run` executes (a multiply-add is 2)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def kept_bytes(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that `run` (a forward pass) keeps for backward, each storage once, the model's own weights apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    todo, seen = [run().grad_fn], set()
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [before for before, _ in node.next_functions]
        for tensor in _saved_by(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
    return sum(kept.values())


def _saved_by(node: Any) -> Iterator[Tensor]:
    values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    values += getattr(node, "saved_tensors", ())
    for value in values:
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, Tensor):
                yield from (one._indices(), one._values()) if one.layout == torch.sparse_coo else (one,)
