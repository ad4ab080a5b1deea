"""Predictions as pictures: the section of a report that shows them, wrong ones first."""

from __future__ import annotations

import math
from typing import Any

from peft_data import ClassificationData
from peft_data.cache import DecodedPictures

from peft_core.jobs.reports import page as report
from peft_core.jobs.reports.fonts import isolated
from peft_core.jobs.reports.scores import Scores

SHOWN = 24


def prediction_rows(data: ClassificationData, scores: Scores, pictures: DecodedPictures) -> list[dict[str, Any]]:
    triples = zip(pictures.labels.tolist(), scores.predicted.tolist(), scores.probability.tolist(), strict=True)
    return [
        {
            "path": pictures.names[row],
            "class": data.class_names[predicted],
            "probability": round(probability, 6),
            "true_class": data.class_names[label],
            "correct": int(label == predicted),
        }
        for row, (label, predicted, probability) in enumerate(triples)
    ]


def picture_section(data: ClassificationData, scores: Scores, pictures: DecodedPictures) -> str:
    """The wrong ones that the model was surest of, then right ones, surest last."""
    wrong = scores.predicted != pictures.labels
    order = sorted(
        range(len(pictures)), key=lambda row: (not wrong[row], -scores.probability[row].item() * bool(wrong[row]))
    )
    n_wrong = min(int(wrong.sum()), math.ceil(SHOWN * 2 / 3))
    chosen = order[:n_wrong] + order[int(wrong.sum()) :][: SHOWN - n_wrong]
    cells = []
    for row in chosen:
        image = pictures.preview(row)
        said = isolated(data.class_names[int(scores.predicted[row])])
        caption = f"{said} ({100 * scores.probability[row].item():.0f}\u00a0%)"
        if wrong[row]:
            caption = f"{isolated(data.class_names[int(pictures.labels[row])])} taken for {caption}"
        cells.append((image, caption, bool(wrong[row])))
    lead = f"<p>{int(wrong.sum()):,} of {len(pictures):,} are wrong.</p>"
    return lead + report.picture_grid(cells, wide=any(image.width > 3 * image.height for image, *_ in cells))
