"""What the model itself was last called with in training, and the logits that it gave: for penalties that call it once more."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft


class Predictions(Graft):
    """On the model itself: keeps what a training forward was called with and gave."""

    def leaving(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            _LAST[self] = args, kwargs, output if isinstance(output, Tensor) and output.dim() == 2 else None
        return output

    def take(self, name: str) -> tuple[tuple, dict[str, Any], Tensor | None]:
        """Arguments, keyword arguments and logits (None of a model that gives none) of the last forward, once.

        Raises:
            PeftError: there was none, for the method of that name.
        """
        found = _LAST.pop(self, None)
        if found is None:
            raise PeftError(
                f"{name} compares two forwards of the whole model: call the model itself before the penalty (--cache_prefix off)."
            )
        return found


_LAST: WeakKeyDictionary[Graft, tuple[tuple, dict[str, Any], Tensor | None]] = WeakKeyDictionary()
"""Beside the models, so that no copy and no file of one carries a batch."""
