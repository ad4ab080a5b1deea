"""Data whose pictures have no class: sets of labels, numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, listing


@dataclass(frozen=True, eq=False)
class MultiLabelData(ClassificationData):
    """Pictures with any number of C labels: `labels` of a split are int8 `N C`, 1 it has, 0 it has not, -1 nobody knows.

    Raises:
        DataError: no label, one that no training picture has or that all have, or another value.
    """

    recipe: str | None = "multi_label"
    task: ClassVar[str] = "multi_label"

    @property
    def kinds(self) -> str:
        return f"{len(self.class_names):,} label{'s' if len(self.class_names) != 1 else ''}"

    def counts(self, part: Pictures) -> torch.Tensor:
        return (part.labels > 0).sum(0) if len(part) else torch.zeros(len(self.class_names), dtype=torch.int64)

    def said(self, label: Any) -> str:
        """The names of what a picture has, or `nothing`."""
        return ", ".join(name for name, has in zip(self.class_names, label, strict=True) if has > 0) or "nothing"

    def check(self) -> None:
        names = self.class_names
        if not names:
            raise DataError(f"{self.name} has no label: give it one column, list or category a label")
        for split, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if len(part) and (part.labels.shape[1:] != (len(names),) or int(part.labels.abs().max()) > 1):
                raise DataError(f"the labels of {split} of {self.name} must be -1, 0 or 1, {len(names)} a picture")
        for value, words in ((1, "no picture to train on has"), (0, "every picture to train on has")):
            without = (
                ~(self.train.labels == value).any(0) if len(self.train) else torch.zeros(len(names), dtype=torch.bool)
            )
            odd = [name for name, is_odd in zip(names, without.tolist(), strict=True) if is_odd]
            if odd:
                raise DataError(
                    f"{words} these labels of {self.name}, so that they cannot be learnt: leave them out{listing(odd)}"
                )


@dataclass(frozen=True, eq=False)
class RegressionData(ClassificationData):
    """A number a picture: `labels` of a split are float32 `N`; `class_names` is what the number is, one name.

    Raises:
        DataError: a number that is infinite or none, or the same one for all training pictures.
    """

    recipe: str | None = "regression"
    task: ClassVar[str] = "regression"

    @property
    def kinds(self) -> str:
        low, high = self.train.labels.aminmax() if len(self.train) else torch.zeros(2)
        return f"{self.class_names[0]} from {float(low):g} to {float(high):g}"

    def counts(self, part: Pictures) -> torch.Tensor:
        return torch.tensor([len(part)])

    def said(self, label: Any) -> str:
        return f"{self.class_names[0]} {label:g}"

    def check(self) -> None:
        for split, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if not torch.isfinite(part.labels).all():
                raise DataError(
                    f"{self.name} has a number in {split} that is none or infinite: mend or remove its line"
                )
        if len(self.train) and self.train.labels.min() == self.train.labels.max():
            raise DataError(
                f"all training pictures of {self.name} have {self.said(float(self.train.labels[0]))}: there is nothing to learn"
            )
