"""How well subnets do on val with inherited weights: in this process, in several, or on Ray, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft_data.augment import normalise
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.jobs.data import Data
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.sweep.outcome import Outcome
from peft_core.jobs.sweep.pool import Pool, default_workers
from vision_peft.noah.forms import Forms
from vision_peft.noah.search import Score
from vision_peft.noah.space import Space, Subnet
from vision_peft.noah.supernet import Supernet

BATCH = 200
PARCEL = 5
"""Subnets that a process scores in one go: few, so that all processes end a generation together."""
Scorer = Callable[[list[Subnet]], Iterator[tuple[Subnet, Score]]]
"""Scores of subnets, in the order in which they become known."""


class Fitness:
    """Scores subnets of a trained supernet on pictures that are kept normalised; nothing is built for a subnet.

    Args:
        images: normalised pictures `N 3 H W`.
        labels: int64 `N`.
    """

    def __init__(self, supernet: Supernet, images: Tensor, labels: Tensor) -> None:
        self.supernet = supernet
        self.batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
        supernet.model.eval()

    @classmethod
    def of(cls, run: Path, space: Space) -> Fitness:
        """On the val pictures of a supernet's run folder.

        Args:
            space: that it was trained for.
        """
        loaded = load_run(run)
        data = Data.of(loaded.config)
        val = data.decode(data.open().val, loaded.fit.size, mode=loaded.fit.mode, crop_pct=loaded.fit.crop_pct)
        device = next(loaded.model.parameters()).device
        images = normalise(val.images.to(device), loaded.mean, loaded.std)
        return cls(Supernet(loaded.model, Forms(loaded.model, space)), images, val.labels.to(device))

    @torch.inference_mode()
    def __call__(self, subnet: Subnet) -> Score:
        self.supernet.choose(subnet)
        return on_batches(self.supernet, self.batches)


def on_batches(model: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]) -> Score:
    """What a model makes of normalised pictures with their labels."""
    correct, loss, pictures = 0, 0.0, 0
    for images, labels in batches:
        logits = model(images).float()
        correct += int((logits.argmax(-1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        pictures += len(labels)
    return Score(correct, round(loss / pictures, 4))


@contextmanager
def scoring(run: Path, space: Space, workers: int, ray: str | None) -> Iterator[Scorer]:
    """Something that scores subnets.

    Args:
        workers: processes; 1 is this one, 0 one a processor or GPU.
        ray: a cluster's address, or `local`, to score there instead.

    Raises:
        PeftError: Ray is missing or does not answer; a process failed.
    """
    if ray:
        yield from on_ray(run, space, workers, ray)
        return
    count, threads = default_workers(workers, 0)
    if count == 1:
        fitness = Fitness.of(run, space)
        yield lambda subnets: ((subnet, fitness(subnet)) for subnet in subnets)
        return
    with Pool(count, threads, run, work=score_parcel, parcel=lambda job, out: (out, space, job.subnets)) as pool:
        yield lambda subnets: in_processes(pool, subnets)


@dataclass(frozen=True)
class Parcel:
    """A job of `Pool`."""

    subnets: tuple[Subnet, ...]
    task: str = ""


def parcels(subnets: list[Subnet]) -> list[Parcel]:
    return [Parcel(tuple(subnets[start : start + PARCEL])) for start in range(0, len(subnets), PARCEL)]


def score_parcel(run: Path, space: Space, subnets: tuple[Subnet, ...]) -> Outcome:
    """What a process of `Pool` does; it keeps the supernet and the pictures for the next parcel."""
    with Outcome() as outcome:
        if _KEPT.get("of") != (run, space):
            _KEPT.update({"of": (run, space), "fitness": Fitness.of(run, space)})
        outcome.results = {"scores": [_KEPT["fitness"](subnet) for subnet in subnets]}
    return outcome


_KEPT: dict[str, Any] = {}


def in_processes(pool: Pool, subnets: list[Subnet]) -> Iterator[tuple[Subnet, Score]]:
    found: list[tuple[Subnet, Score]] = []

    def done(parcel: Parcel, outcome: Outcome) -> None:
        if outcome.results is None:
            raise PeftError(f"scoring subnets failed: {outcome.error}.")
        found.extend(zip(parcel.subnets, outcome.results["scores"], strict=True))

    pool.run(parcels(subnets), done)
    yield from found


def on_ray(run: Path, space: Space, count: int, address: str) -> Iterator[Scorer]:
    from peft_core.jobs.sweep.ray_pool import connect

    started = connect(address)
    import ray
    from ray.util import ActorPool

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Actor)
    made: list[Any] = [actor.remote(run, space) for _ in range(count or gpus or int(resources["CPU"]))]
    pool = ActorPool(made)

    def score(subnets: list[Subnet]) -> Iterator[tuple[Subnet, Score]]:
        for parcel, outcome in pool.map(lambda each, parcel: each.score.remote(parcel), parcels(subnets)):
            if outcome.results is None:
                raise PeftError(f"scoring subnets failed: {outcome.error}.")
            yield from zip(parcel.subnets, outcome.results["scores"], strict=True)

    try:
        yield score
    finally:
        for each in made:
            ray.kill(each)
        if started:
            ray.shutdown()


class Actor:
    """A process on Ray. Every node must see the run's folder under its path."""

    def __init__(self, run: Path, space: Space) -> None:
        torch.set_num_threads(1)
        self.run, self.space = run, space

    def score(self, parcel: Parcel) -> tuple[Parcel, Outcome]:
        return parcel, score_parcel(self.run, self.space, parcel.subnets)
