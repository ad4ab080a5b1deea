"""Where a run is not what it seems: each remark is a sentence made of figures, or None where there is nothing to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.jobs.reports.fonts import cut
from peft_core.jobs.reports.scores import Scores, wilson

FEW = 30


def of_few(pictures: int) -> str | None:
    """So few pictures were scored that the accuracy says little."""
    if not 0 < pictures < FEW:
        return None
    each = 100 / pictures
    return f"only {pictures} pictures were scored, so that one more or less right is {each:.0f} %: the accuracy is a rough guess"


def of_chance(right: int, counts: Sequence[int]) -> str | None:
    """The accuracy may be that of naming the commonest class each time.

    Args:
        right: pictures named right.
        counts: pictures of each class.
    """
    total = sum(counts)
    commonest = max(counts, default=0) / total if total else 1.0
    if not total or wilson(right, total)[0] > commonest:
        return None
    return (
        f"accuracy {right / total:.3f} cannot be told from chance (always naming the commonest class gives {commonest:.3f}): "
        "look at the pictures and their labels, train longer, or take another --backbone"
    )


def of_zero_shot(accuracy: float, zero_shot: float | None, pictures: int) -> str | None:
    """The untrained model does as well as the trained one, or better."""
    if zero_shot is None or accuracy > zero_shot:
        return None
    how = "better than" if zero_shot > accuracy else "as good as"
    return (
        f"zero-shot, the names alone, is {how} what was trained: {zero_shot:.3f} against {accuracy:.3f} on the same {pictures:,} "
        "pictures: use --method zero_shot, more --shots, fewer epochs or a lower --lr"
    )


def of_loss(losses: Sequence[float], classes: int = 0, epochs: int = 0) -> str | None:
    """The training loss still falls at the end, or has hardly fallen: training longer would help.

    Args:
        losses: means of equal stretches of the training, in order.
        classes: C; a loss near ln C is that of guessing. 0 where the loss is no cross-entropy of classes.
        epochs: that were trained; the remark names how many to take.
    """
    if len(losses) < 5 or not all(map(math.isfinite, losses)):
        return None
    part = len(losses) // 5
    first, before, last = (losses[:part], losses[-2 * part : -part], losses[-part:])
    start, near, end = map(statistics.fmean, (first, before, last))
    noise = math.sqrt(sum(statistics.pvariance(each) / len(each) for each in (before, last))) if part > 1 else 0.0
    times = 0
    if classes > 1 and end > 0.6 * math.log(classes) and end > 0.75 * start:
        times, words = 4, f"has hardly fallen, from {start:.3g} to {end:.3g} (guessing: {math.log(classes):.3g})"
    elif near - end > max(2 * noise, 0.15 * (start - end), 0.05 * near):
        times, words = 2, f"still falls at the end, from {near:.3g} to {end:.3g} in the last fifth"
    if not times:
        return None
    longer = f"--epochs {times * epochs}" if epochs else f"{times} × as many steps"
    return f"the training loss {words}: train longer ({longer})" + (", or raise --lr" if times == 4 else "")


def of_gap(trained: float | None, right: int, total: int) -> str | None:
    """The pictures that it was trained on are named far better than others.

    Args:
        trained: accuracy on them in the last epoch.
        right, total: of the other pictures.
    """
    if trained is None or not total or trained - right / total < 0.15 or trained < wilson(right, total)[1] + 0.05:
        return None
    return (
        f"the pictures it was trained on are named right in {100 * trained:.0f} % of the cases, others in "
        f"{100 * right / total:.0f} %: it has learnt them by heart; more pictures, --augment crop_flip, or a smaller method help"
    )


def of_silence(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> str | None:
    """Classes that have pictures and were never named."""
    silent = [name for c, name in enumerate(class_names) if sum(confusion[c]) and not any(row[c] for row in confusion)]
    if not silent:
        return None
    shown = ", ".join(cut(name, 40) for name in silent[:5]) + (
        f" and {len(silent) - 5} more" if len(silent) > 5 else ""
    )
    return f"never predicted, though they have pictures: {shown}"


def remarks(
    scores: Scores | None, history: Sequence[Mapping[str, Any]], class_names: Sequence[str], **known: Any
) -> list[str]:
    """All that is to say of a classifier's run.

    Args:
        known: `zero_shot` and `trained` accuracies, `epochs`.
    """
    losses = [row["loss"] for row in history if "loss" in row]
    guessing = (
        0 if known.get("zero_shot") is not None else len(class_names)
    )  # a CLIP begins with what it knows of the names
    found = [of_loss(losses, guessing, known.get("epochs", 0))]
    if scores is not None:
        confusion = scores.confusion.tolist()
        counts, right = [sum(row) for row in confusion], int(scores.confusion.trace())
        total = sum(counts)
        found = [
            of_few(total),
            of_chance(right, counts),
            of_zero_shot(scores.accuracy, known.get("zero_shot"), total),
            *found,
            of_gap(known.get("trained"), right, total),
            of_silence(confusion, class_names),
        ]
    return [each for each in found if each]
