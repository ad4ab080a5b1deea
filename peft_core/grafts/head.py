"""A head of its own for an adaptation that shares its backbone with others: each task keeps its classifier."""

import copy
from typing import Any

from torch import nn

from peft_core.grafts.graft import Graft, entering, leaving


class OwnHead(Graft):
    """The module's output is `instead`'s: of several heads that are on, the last one speaks. A scale does not weigh it."""

    def __init__(self, instead: nn.Module):
        super().__init__()
        self.instead = instead

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        return self.instead(*args, **kwargs)


def copied_head(head: nn.Module, classes: int | None = None) -> nn.Module:
    """A head like this one, without grafts; a linear one for another number of classes where `classes` says so."""
    if classes is not None and isinstance(head, nn.Linear) and classes != head.out_features:
        return nn.Linear(head.in_features, classes, head.bias is not None, head.weight.device, head.weight.dtype)
    new = copy.deepcopy(head)
    new._modules.pop("peft", None)
    for hooks, ours in ((new._forward_pre_hooks, entering), (new._forward_hooks, leaving)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
    return new
