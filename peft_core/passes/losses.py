"""What `lifecycle.prepare` is given of the data: losses of batches, of single samples, by other names, with classes."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from peft_core.errors import PeftError


class Losses:
    """What `prepare` may be given: the losses of batches, one pass over the data each time it is iterated.

    Args:
        loss: of a batch.
        batches: iterable more than once where methods are to see the data more than once.
        others: further losses of a batch by name, e.g. `contrastive`.
        labels: the classes of a batch's samples.
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        batches: Iterable[Any],
        others: Mapping[str, Callable[[Any], Tensor]] | None = None,
        labels: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.loss, self.batches, self.others, self.labels = loss, batches, dict(others or {}), labels

    def __iter__(self) -> Iterator[Tensor]:
        return (self.loss(batch) for batch in self.batches)

    def singly(self) -> Iterator[Tensor]:
        """The losses of single samples."""
        return (self.loss(sample) for batch in self.batches for sample in samples_of(batch))

    def over(self, batches: Iterable[Any]) -> "Losses":
        """The same of other batches."""
        found = copy.copy(self)
        found.batches = batches
        return found

    def named(self, name: str) -> Iterator[Tensor]:
        return (self.others[name](batch) for batch in self.batches)


def singly(losses: Iterable[Tensor]) -> Iterable[Tensor]:
    """The losses of single samples where they can be had; else those given, which should be such."""
    return losses.singly() if isinstance(losses, Losses) else losses


def named_losses(losses: Iterable[Tensor], name: str) -> Iterable[Tensor]:
    """The losses of another name where the training loop offers them; else those given."""
    return losses.named(name) if isinstance(losses, Losses) and name in losses.others else losses


def labelled(losses: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]] | None:
    """The losses, each with the classes of its batch's samples; None where the training loop tells no classes."""
    if not isinstance(losses, Losses) or losses.labels is None:
        return None
    return ((losses.loss(batch), losses.labels(batch)) for batch in losses.batches)


def of_first_batch(losses: Iterable[Tensor]) -> Iterable[Tensor]:
    """The loss of the first batch, the same one however often it is asked for; those given where a loop tells no batches."""
    return losses.over(list(islice(losses.batches, 1))) if isinstance(losses, Losses) else losses


def samples_of(batch: Any) -> Iterator[Any]:
    """Batches of one sample each, of tensors, lists and tuples and dicts of them; what is no tensor or list stays."""
    for n in range(_length(batch) or 0):
        yield _sample(batch, n)


def _length(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((found for part in parts if (found := _length(part)) is not None), None)


def _sample(batch: Any, n: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[n : n + 1] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _sample(part, n) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_sample(part, n) for part in batch))
    if isinstance(batch, tuple) or (isinstance(batch, list) and _length(batch) is not None):
        return type(batch)(_sample(part, n) for part in batch)
    return batch[n : n + 1] if isinstance(batch, list) else batch


class Passes:
    """Losses, or batches of them, as a method goes through them: there are some, and they come as often as it asks."""

    def __init__(self, each: Iterable[Any], name: str) -> None:
        self.each, self.name, self.gone = each, name, False

    def __iter__(self) -> Iterator[Any]:
        once = iter(self.each) is self.each
        if once and self.gone:
            raise PeftError(
                f"{self.name} goes through prepare's losses several times, and these come once: give "
                "lifecycle.Losses(loss, batches)."
            )
        self.gone, empty = True, True
        for each in self.each:
            empty = False
            yield each
        if empty:
            raise PeftError(f"{self.name} chooses by the losses that prepare is given, and was given none.")


def given(losses: Iterable[Any], name: str) -> "Losses | Passes":
    """What the method `name` gets of what `prepare` was given."""
    if not isinstance(losses, Losses):
        return Passes(losses, name)
    return losses.over(Passes(losses.batches, name))
