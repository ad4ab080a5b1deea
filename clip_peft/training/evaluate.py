"""Scoring a split: accuracy, accuracy of each class, and how far the probabilities can be trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft_data.cache import DecodedPictures, decoded
from torch import Tensor

from clip_peft.frozen import cosine, mean_features
from clip_peft.learner import grafted
from clip_peft.text.templates import DEFAULT
from clip_peft.training.features import CHUNK, Encoder, chunks
from peft_core.adaptation import disabled
from peft_core.jobs.reports.scores import Scores, by_class, sure

BINS = 15


@torch.no_grad()
def score(encoder: Encoder, pictures: DecodedPictures, classes: int, columns: Sequence[int] | None = None) -> Scores:
    """Scores of pictures whose labels are of `classes`; `columns` are these classes' places among the model's, where it
    names more than these."""
    predicted, probability = [], []
    encoder.whole.learner.begin()
    for logits in batches_of_logits(encoder, pictures, shuffled=True):
        logits = logits if columns is None else logits[:, list(columns)]
        for kept, values in zip((predicted, probability), sure(logits), strict=True):
            kept.append(values.cpu())
    named = torch.cat(predicted)
    cells = torch.bincount(pictures.labels * classes + named, minlength=classes * classes)
    return Scores(cells.view(classes, classes), named, torch.cat(probability))


def batches_of_logits(encoder: Encoder, pictures: Any, shuffled: bool = False) -> Iterator[Tensor]:
    """Logits B C of pictures (uint8 N 3 H W, decoded ones, or in their own frames), batch by batch;
    features come from the cache where the image tower is frozen.

    Args:
        shuffled: a method that learns from pictures as they come sees them in a drawn order, not sorted by their labels.
    """
    whole = encoder.whole.eval()
    method = whole.learner.method
    views = test_views(whole.method)
    weights = None if method.of_pictures else whole.learner.weights()
    pictures = decoded(pictures) if isinstance(pictures, Tensor) else pictures
    if not encoder.frozen and not views and not method.of_stream:
        for rows in chunks(len(pictures)):
            yield whole.logits(whole.encode(encoder.images(pictures.whole(rows))), weights)
        return
    features = encoder.views(pictures, [None, *range(1, views)], test_augment(whole.method))
    if views and (count := getattr(method, "generated", 0)):
        variations: Any = whole.learner.variations
        features += encoder.generated(pictures, variations, count)
    size = CHUNK if not views else 4
    order = torch.arange(len(pictures))
    if shuffled and method.of_stream:
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    named = []
    for rows in order.split(size):
        part = [view[rows].to(encoder.device) for view in features]
        named.append(whole.logits(torch.stack(part, dim=1) if views else part[0], weights))
        if not method.of_stream:
            yield named.pop()
    yield from torch.cat(named)[order.argsort()].split(size) if named else ()


def zero_shot(encoder: Encoder, pictures: Any, template: Any = None) -> float:
    """The stock model's accuracy on the same pictures and names, to stand beside what was learnt (see zero_shot_cosines)."""
    right = (zero_shot_cosines(encoder, pictures, template).argmax(-1) == pictures.labels).sum()
    return int(right) / len(pictures)


@torch.no_grad()
def zero_shot_cosines(encoder: Encoder, pictures: Any, template: Any = None) -> Tensor:
    """N C, on the CPU: how near the stock model's picture and class are, by the method's own texts (`template` for methods that
    graft, else the method's)."""
    whole = encoder.whole.eval()
    clip, names = whole.learner.clip, whole.class_names
    text = template or getattr(whole.learner.method, "template", DEFAULT)
    with disabled(whole.model) if grafted(whole.method) else contextlib.nullcontext():
        weights = mean_features(clip.text_passes(names, text))
        found = [cosine(features.to(encoder.device), weights).cpu() for features in encoder.stock_features(pictures)]
    return torch.cat(found)


def test_augment(method: Any) -> str:
    """What the pictures to be scored are decoded for: views at test are parts of the file's own frame, too."""
    if not test_views(method):
        return "none"
    return "augmix_crop_flip" if getattr(method, "augmix", False) else "crop_flip"


def test_views(method: Any) -> int:
    """Views of a picture that the method wants at test time; 0 where it takes the picture itself."""
    views = getattr(method, "views", 0)
    return views if views > 1 else 0


def reliability(scores: Scores, labels: Tensor, bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error Σ_b n_b/N |accuracy_b − confidence_b| over equal bins of confidence, and the bins.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; 15 bins as there.
    """
    right = (scores.predicted == labels).double()
    sure = scores.probability.double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    count, accuracy, confidence = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values)
        for values in (torch.ones_like(sure), right, sure)
    )
    ece = ((accuracy - confidence).abs().sum() / max(1, len(labels))).item()
    rows = [
        {"count": int(n), "accuracy": (a / n).item() if n else None, "confidence": (c / n).item() if n else None}
        for n, a, c in zip(count, accuracy, confidence, strict=True)
    ]
    return {"ece": ece, "bins": rows}


def figures(scores: Scores, pictures: DecodedPictures, class_names: Sequence[str]) -> dict[str, Any]:
    """What stands in results.json of one pass over a split."""
    return {
        "accuracy": scores.accuracy,
        **reliability(scores, pictures.labels),
        "pictures": len(pictures),
        "per_class": by_class(class_names, scores),
    }
