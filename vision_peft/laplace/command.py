"""`vision_peft laplace`: the probabilities of a finished run, calibrated by a Gaussian over its LoRA weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.video.batches import batches_of
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.values import Count, Positive, Seed, Whole

BINS = 15
FILE = "laplace.json"


@command("vision")
def laplace(
    *,
    run: str,
    batch_size: Count = 8,
    fit_pictures: Whole = 0,
    prior_precision: Positive | None = None,
    draws: Count = 1000,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Calibrate a finished LoRA run: accuracy, NLL and expected calibration error before and after, on its held-out split.

    Laplace's approximation (Yang et al., "Bayesian Low-rank Adaptation for Large Language Models", ICLR 2024) over the LoRA
    weights, not the head. The figures stand in the run's laplace.json afterwards.

    Args:
        run: The run folder.
        batch_size: Pictures at once; memory grows with it, the classes and the adapter.
        fit_pictures: Training pictures to fit to, the first ones of a shuffled order; 0 takes all.
        prior_precision: Of the weights' Gaussian prior; by default the one of most evidence.
        draws: Of the logits, a picture.
        seed: Of the order and the draws.
    """
    from vision_peft.job import splits
    from vision_peft.laplace.posterior import Posterior, probabilities
    from vision_peft.run import classifier

    loaded = classifier(run, "laplace")
    chosen = Data.of(loaded.config)
    opened = chosen.open()
    train, scored, name = splits(opened, loaded.config["eval_on"], loaded.config["protocol"])
    if not len(scored):
        raise PeftError(f"{opened.name} has no pictures apart from the training ones to measure calibration on.")
    began, device = time.monotonic(), next(loaded.model.parameters()).device

    def batches(pictures: Any, shuffle: bool = False, most: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        decoded = chosen.decode(pictures, loaded.fit.size, mode=loaded.fit.mode, crop_pct=loaded.fit.crop_pct)
        seen = 0
        for batch in batches_of(decoded, batch_size, seed=seed, shuffle=shuffle):
            if most and seen >= most:
                return
            images = batch.images[: most - seen] if most else batch.images
            seen += len(images)
            yield normalise(images.to(device), loaded.mean, loaded.std), batch.labels[: len(images)]

    posterior = Posterior(loaded.model)
    posterior.fit(x for x, _ in batches(train, bool(fit_pictures), fit_pictures))
    posterior.precision = posterior.choose_prior() if prior_precision is None else prior_precision
    before, after, labels = [], [], []
    generator = torch.Generator().manual_seed(seed)
    for x, truth in batches(scored):
        mean, covariance = posterior.logits(x)
        before.append(mean.softmax(-1).cpu())
        after.append(probabilities(mean, covariance, draws, generator).cpu())
        labels.append(truth)
    truth = torch.cat(labels)
    found: dict[str, Any] = {
        "evaluated_on": name, "pictures": len(truth), "prior_precision": posterior.precision,
        "before": figures(torch.cat(before), truth), "after": figures(torch.cat(after), truth),
        "draws": draws, "seed": seed, "fit_pictures": fit_pictures or len(train), "seconds": time.monotonic() - began,
    }  # fmt: skip
    write_files(Path(run), {FILE: (json.dumps(found, indent=2) + "\n").encode()})
    print(f"{len(truth):,} pictures of {opened.name} {name}, prior precision {posterior.precision:.4g}")
    for when in ("before", "after"):
        row = found[when]
        print(f"{when:>6}  accuracy {row['accuracy']:.4f}  NLL {row['nll']:.4f}  ECE {row['ece']:.4f}")
    return found


def figures(probability: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, mean −log p of the true class, and ECE = Σ_bins (n_b/N) |accuracy_b − mean confidence_b| of 15 equal bins.

    probability: N C · truth: N
    """
    confidence, predicted = probability.max(-1)
    right = (predicted == truth).double()
    of_truth = probability.gather(1, truth[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, right - confidence.double())
    return {
        "accuracy": right.mean().item(),
        "nll": -of_truth.log().mean().item(),
        "ece": (gaps.abs().sum() / len(truth)).item(),
    }
