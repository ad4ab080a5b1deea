"""Any number of labels a picture: average precision, and a threshold a label, chosen on val."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft_data.base import ClassificationData

from clip_peft.training.evaluate import batches_of_logits, zero_shot_cosines
from clip_peft.training.features import Encoder
from clip_peft.training.results import labels_rows
from peft_core.jobs.reports import classified
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.labels import LabelScores, LabelSet, scores_of, thresholds_of


class Labels(LabelSet):
    """Args: class_names: what the logits' columns stand for; thresholds: of each; a picture has a label from there on."""

    name, beside, calibrates = "multi_label", "zero_shot_mAP", True
    kept = ("mAP",)
    top = 1
    """`predict` tells the labels that a picture has."""

    def __init__(self, class_names: Sequence[str], thresholds: Sequence[float] = ()) -> None:
        self.class_names = tuple(class_names)
        self.thresholds = torch.tensor(list(thresholds) or [0.5] * len(self.class_names))

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Labels:
        return cls(card["class_names"], thresholds_of(card) if "thresholds" in card else ())

    def renamed(self, class_names: Sequence[str], places: Sequence[int] | None = None) -> Labels:
        """The same for other names, of which those that it knew (at `places`) keep their thresholds."""
        return Labels(class_names, () if places is None else self.thresholds[list(places)].tolist())

    def notes(self, data: ClassificationData) -> list[str]:
        return []

    # ---- figures ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, encoder: Encoder, pictures: Any, columns: Sequence[int] | None = None) -> LabelScores:
        logits = torch.cat([each.float().cpu() for each in batches_of_logits(encoder, pictures)])
        return scores_of(logits if columns is None else logits[:, list(columns)], pictures.labels)

    def on_the_way(self, encoder: Encoder, val: Any) -> dict[str, float]:
        return {"mAP": self.scores(encoder, val).value}

    def choose(self, encoder: Encoder, val: Any) -> dict[str, Any]:
        """Thresholds on val; the settings stay."""
        self.calibrate(self.scores(encoder, val))
        return {}

    def zero_shot(self, encoder: Encoder, pictures: Any, template: Any = None) -> float | None:
        """mAP of the stock model's cosines: each label ranks the pictures; None where no picture has one."""
        value = scores_of(zero_shot_cosines(encoder, pictures, template).float(), pictures.labels).value
        return None if math.isnan(value) else value

    def figures(self, scores: LabelScores | None, pictures: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"task": self.name} | super().figures(scores) | {"per_label": self.parts(scores)}

    # ---- words -----------------------------------------------------------------------------------------------------

    def remarks(self, whole: Any, scores: Any, results: Any, history: Any) -> list[str]:  # type: ignore[override]
        zero, found = results[self.beside], super().remarks(scores, history)
        if scores is None or zero is None or zero < results["mAP"]:
            return found
        worse = f"zero-shot, the names alone, ranks the pictures as well or better: mAP {zero:.3f} against {results['mAP']:.3f}"
        return [*found, f"{worse}: train longer, or at another --lr"]

    def write(self, run: Finished) -> dict[str, Any]:
        results = run.results
        title = f"{run.data.name}, {results['method']['name']} on {results['backbone']}"
        lead = "not scored" if run.scores is None else f"{self.words(results)} on {results['evaluated_on']}"
        files, sections = self.files_and_sections(run)
        return classified.write_with(run, labels_rows, title, lead, files, sections, self.score)

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        zero = results.get("zero_shot_mAP")
        return super().words(results) + ("" if zero is None else f", zero-shot mAP {zero:.4f}")
