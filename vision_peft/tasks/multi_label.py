"""Any number of labels a picture: binary cross-entropy, average precision, a threshold a label chosen on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft_data.base import ClassificationData
from torch import Tensor

from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.labels import UNKNOWN, LabelSet, scores_of, thresholds_of
from vision_peft.tasks.base import Rows, Task
from vision_peft.tasks.outcome import write


class Labels(LabelSet, Task):
    """Mean over known labels of −y log σ(z) − (1 − y) log(1 − σ(z)), y smoothed to y (1 − s) + s/2.

    Args:
        thresholds: of each label; a picture has it from there on.
    """

    name = "multi_label"
    calibrates, part = True, "average_precision"

    def __init__(self, class_names: Sequence[str], smoothing: float = 0.0, thresholds: Sequence[float] = ()) -> None:
        super().__init__(class_names)
        self.smoothing = smoothing
        self.thresholds = torch.tensor(list(thresholds) or [0.5] * len(class_names))

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Labels:
        return cls(data.class_names, settings["label_smoothing"])

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Labels:
        return cls(card["class_names"], thresholds=thresholds_of(card))

    def line(self, outputs: str) -> str:
        limits = [round(each, 4) for each in self.thresholds.tolist()]
        return f"[name for name, p, t in zip(names, {outputs}[0].sigmoid(), {limits}) if p >= t]"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels != UNKNOWN
        target = (labels.clamp(min=0) * (1 - self.smoothing) + self.smoothing / 2).to(torch.float32)
        loss = F.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none")
        return (loss * known).sum() / known.sum().clamp(min=1)

    def meter(self) -> Rows:
        return Rows(scores_of)

    def write(self, run: Finished) -> dict[str, Any]:
        run.results["per_label"] = self.parts(run.scores)
        return write(run, self, *self.files_and_sections(run))


TASK = Labels
