"""Pictures with any number of labels: average precision, a threshold a label, and what a report and a prediction say of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.jobs.reports import page
from peft_core.jobs.reports.classified import Finished, Section
from peft_core.jobs.reports.scores import by_name, numbers
from peft_core.values import typed

UNKNOWN = -1


class LabelScores(NamedTuple):
    """Of one pass over a split: probabilities `N C`, labels int64 `N C` (−1 unknown), average precisions `C` (NaN where no
    picture has the label)."""

    probabilities: Tensor
    labels: Tensor
    precisions: Tensor

    @property
    def value(self) -> float:
        """mAP: the mean over labels that a picture has."""
        return self.precisions.nanmean().item()

    def f1(self, thresholds: Tensor) -> Tensor:
        """F1 of each label, `C`."""
        said, has, known = self.probabilities >= thresholds, self.labels == 1, self.labels != UNKNOWN
        hits = (said & has).sum(0)
        return 2 * hits / ((said & known).sum(0) + has.sum(0)).clamp(min=1)


class LabelPrediction(NamedTuple):
    """The labels of a picture whose probability reaches their threshold, the likeliest first, and the probability of each, C."""

    labels: tuple[str, ...]
    probabilities: Tensor


def scores_of(outputs: Tensor, labels: Tensor) -> LabelScores:
    """Of outputs `N C`, whose sigmoid are probabilities, and labels `N C`."""
    from torchmetrics.functional.classification import multilabel_average_precision

    probabilities, labels = outputs.sigmoid(), labels.long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that no picture has, which are left out here
        found = multilabel_average_precision(
            probabilities, labels, labels.shape[1], average="none", ignore_index=UNKNOWN
        )
    found = torch.where((labels == 1).any(0), found.view(-1), torch.nan)  # type: ignore[union-attr]
    return LabelScores(probabilities, labels, found)


def best_thresholds(scores: LabelScores) -> Tensor:
    """The threshold of the highest F1 of each label, `C`: halfway between the probabilities that it parts; 0.5 for a label
    that no picture has."""
    thresholds = torch.full((scores.labels.shape[1],), 0.5)
    for label in range(len(thresholds)):
        known = scores.labels[:, label] != UNKNOWN
        probabilities, order = scores.probabilities[known, label].sort(descending=True)
        has = (scores.labels[known, label] == 1)[order]
        if not has.any():
            continue
        said = torch.arange(1, len(has) + 1)
        f1 = 2 * has.cumsum(0) / (said + has.sum())
        last = torch.cat(
            [probabilities[1:] < probabilities[:-1], torch.ones(1, dtype=torch.bool)]
        )  # not within equal ones
        best = int(torch.where(last, f1, -1.0).argmax())
        below = probabilities[best + 1] if best + 1 < len(has) else torch.zeros(())
        thresholds[label] = (probabilities[best] + below) / 2
    return thresholds


def thresholds_of(card: Mapping[str, Any]) -> list[float]:
    """Those of an adapter's card.

    Raises:
        PeftError: there are none, or not one a label.
    """
    found = typed(card.get("thresholds"), list[float], "thresholds in the adapter's card")
    if len(found) != len(card["class_names"]):
        raise PeftError(
            f"the adapter's card has {len(found)} thresholds for {len(card['class_names'])} labels: it is damaged."
        )
    return found


class LabelSet:
    """What is said of outputs `B C`, whose sigmoid are the labels' probabilities.

    Args:
        class_names: the labels' names, C.
        thresholds: of each label, C; a picture has it from there on.
    """

    score: ClassVar[str] = "mAP"
    columns: ClassVar[tuple[str, ...]] = ("label", "probability")
    class_names: tuple[str, ...]
    thresholds: Tensor

    def card(self) -> dict[str, Any]:
        return {"task": "multi_label", "thresholds": [round(each, 6) for each in self.thresholds.tolist()]}

    def calibrate(self, scores: LabelScores) -> None:
        """Chooses the thresholds."""
        self.thresholds = best_thresholds(scores)

    def figures(self, scores: LabelScores | None) -> dict[str, Any]:
        if scores is None or math.isnan(scores.value):
            return {"mAP": None}
        f1 = scores.f1(self.thresholds)[~scores.precisions.isnan()]
        return {"mAP": scores.value, "f1": f1.mean().item()}

    def parts(self, scores: LabelScores | None) -> dict[str, Any]:
        """The figures of each label, by name; None where one is no number."""
        if scores is None:
            return {}
        columns = {
            "average_precision": scores.precisions, "f1": scores.f1(self.thresholds), "threshold": self.thresholds,
            "pictures": (scores.labels == 1).sum(0),
        }  # fmt: skip
        return by_name(self.class_names, columns)

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        if results["mAP"] is None:
            return "no scored picture has a label"
        return f"mAP {results['mAP']:.4f}, mean F1 {results['f1']:.4f}"

    def remarks(self, scores: LabelScores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        if scores is None:
            return []
        none = [
            name for name, value in zip(self.class_names, scores.precisions.tolist(), strict=True) if value != value
        ]
        if len(none) == len(self.class_names):
            return ["no scored picture has a label, so that there is no mAP"]
        return [f"no scored picture has {', '.join(none[:5])}: mAP is the mean of the other labels"] if none else []

    def files_and_sections(self, run: Finished) -> tuple[dict[str, bytes], list[Section]]:
        """predictions.csv, and what the report says of each label and of the pictures; nothing where none were scored."""
        if run.scores is None:
            return {}, []
        header = ["label", "average precision", "F1", "threshold", "pictures"]
        predicted = [
            {"path": name} | dict(zip(self.class_names, map(lambda x: round(x, 6), row), strict=True))
            for name, row in zip(
                run.pictures.names if run.pictures else (), run.scores.probabilities.tolist(), strict=True
            )
        ]
        sections = [("Each label", page.each_class(self.parts(run.scores), header)), ("Pictures", self._pictures(run))]
        return {"predictions.csv": page.csv_bytes(predicted)}, sections

    def _pictures(self, run: Finished, shown: int = 24) -> str:
        """Those whose likeliest mistake is the greatest first."""
        scores, pictures = run.scores, run.pictures
        assert scores is not None and pictures is not None
        wrong = ((scores.probabilities >= self.thresholds) != (scores.labels == 1)) & (scores.labels != UNKNOWN)
        order = (wrong * (scores.probabilities - self.thresholds).abs()).amax(1).argsort(descending=True, stable=True)
        cells = []
        for row in order[:shown].tolist():
            said = ", ".join(self._said(scores.probabilities[row])) or "nothing"
            true = run.data.said(scores.labels[row].tolist())  # type: ignore[arg-type]
            cells.append(
                (
                    pictures.preview(row),
                    f"{true} taken for {said}" if wrong[row].any() else said,
                    bool(wrong[row].any()),
                )
            )
        lead = f"<p>Of {int(wrong.any(1).sum()):,} of {len(wrong):,} a label is wrong.</p>"
        return lead + page.picture_grid(cells)

    def _said(self, probabilities: Tensor) -> tuple[str, ...]:
        order = probabilities.argsort(descending=True).tolist()
        return tuple(self.class_names[each] for each in order if probabilities[each] >= self.thresholds[each])

    def predictions(self, outputs: Tensor) -> Iterator[LabelPrediction]:
        for row in numbers(outputs).sigmoid().cpu():
            yield LabelPrediction(self._said(row), row)

    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        """The labels that it has; with `top` above 1 the likeliest, whether it has them or not."""
        names = [self.class_names[each] for each in prediction.probabilities.argsort(descending=True)[:top].tolist()]
        names = names if top > 1 else list(prediction.labels)
        return [(name, f"{prediction.probabilities[self.class_names.index(name)]:.4f}") for name in names] or [("", "")]

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {"labels": [{"label": name, "probability": float(value)} for name, value in cells if name]}

    def finished(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()
