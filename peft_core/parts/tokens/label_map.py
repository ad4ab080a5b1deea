"""Which of the classes that a model knows stands for each class of a task: by how often it is the answer to that class."""

from typing import Annotated

import torch
from torch import Tensor


def counted(counts: Annotated[Tensor, "S C"], seen: Annotated[Tensor, "B"], labels: Annotated[Tensor, "B"]) -> None:
    """Adds a batch's answers, classes that the model knows, to how often each is the answer to a picture of each label."""
    counts.index_put_((seen, labels), torch.ones(()).to(counts), accumulate=True)


def matched(counts: Annotated[Tensor, "S C"]) -> Annotated[Tensor, "C"]:
    """The known class of each of the task's classes: the pair of the largest count, again and again among those left; of
    equal counts the lower known class, then the lower one of the task."""
    known, tasks = counts.shape
    flat = counts.flatten()
    told = flat.nonzero().flatten()
    order = told[flat[told].argsort(descending=True, stable=True)]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for one, own in (divmod(place, tasks) for place in order.tolist()):
        if one not in taken and own not in found:
            found[own] = one
            taken.add(one)
    left = (one for one in range(known) if one not in taken)
    return torch.tensor([found[own] if own in found else next(left) for own in range(tasks)])
