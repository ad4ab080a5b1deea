"""Features that enter the earliest trained block, computed once where nothing before it is random."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.cache import DecodedPictures
from peft_data.frames import FramedPictures
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.passes.prefix import FrozenPrefix

LIMIT = 2 << 30
"""Bytes of features that `auto` keeps at most."""


class PrefixCache:
    """Logits of pictures by their index, from kept features.

    Args:
        prefix: the split model.
        pictures: the training pictures.
        mean, std: of the channels, which go from 0 to 1.
        compiled: compile what comes after the kept features.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        pictures: DecodedPictures,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        compiled: bool,
    ) -> None:
        self.prefix, self.pictures, self.mean, self.std = prefix, pictures, mean, std
        self.rest: Callable[[Tensor], Tensor] = torch.compile(prefix.rest) if compiled else prefix.rest
        self.features: Tensor | None = None

    def fill(self, device: torch.device, precision: Callable[[], AbstractContextManager], batch: int = 64) -> None:
        """Runs the prefix over all pictures, under the precision that training uses."""
        for start in range(0, len(self.pictures), batch):
            images = self.pictures.images[start : start + batch].to(device)
            with precision():
                found = self.prefix.features(normalise(images, self.mean, self.std))
            if self.features is None:
                self.features = found.new_empty(len(self.pictures), *found.shape[1:])
            self.features[start : start + batch] = found

    def __call__(self, indices: Tensor) -> Tensor:
        assert self.features is not None
        return self.rest(self.features[indices.to(self.features.device)])


def prefix_cache(
    model: nn.Module,
    pictures: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    wanted: str,
    augment: str,
    compiled: bool,
) -> PrefixCache | None:
    """A cache where it is exact, and for `auto` where it is small enough; else None.

    Raises:
        PeftError: it was asked for (`on`) and cannot be: the message says why.
    """
    if wanted == "off":
        return None
    why, cache = "", None
    try:
        if isinstance(pictures, FramedPictures):
            raise PeftError(f"the pictures change from epoch to epoch (augment {augment})")
        if not isinstance(pictures, DecodedPictures):
            raise PeftError("the frames of a clip are drawn anew at every epoch")
        prefix = FrozenPrefix(model)
    except PeftError as error:
        why = str(error).rstrip(".")
    else:
        cache = PrefixCache(prefix, pictures, mean, std, compiled)
        if augment != "none":
            why = f"the pictures change from epoch to epoch (augment {augment})"
        elif not prefix.start:
            why = "something trains in the first block already or before it"
        elif not prefix.deterministic:
            why = "dropout or drop path acts before the first trained block"
        elif wanted == "auto" and _bytes(prefix, pictures) > LIMIT:
            why = "too large"
    if why and wanted == "on":
        raise PeftError(f"features cannot be kept, because {why}: use --cache_prefix auto or off.")
    return None if why else cache


def _bytes(prefix: FrozenPrefix, pictures: DecodedPictures) -> int:
    features = prefix.features(pictures.images[:1].float())
    return len(pictures) * features.numel() * features.element_size()
