"""What a training step takes: latents with captions, batched within buckets, with prior pictures beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft_data.batches import Batches, generator_of
from torch import Tensor

from diffusion_peft.data.latents import Captions, Latent


@dataclass(frozen=True)
class Example:
    """A latent, the numbers of the captions that it may get, the concept that it belongs to, and what each of its values weighs,
    1 h w (1 where there is no mask)."""

    latent: Latent
    captions: tuple[int, ...]
    concept: int = 0
    mask: Tensor | None = None


@dataclass
class Examples:
    """All pictures of a run; `prior` has, for each concept, what keeps the model's idea of its class."""

    items: list[Example]
    captions: Captions
    prior: list[list[Example]] = field(default_factory=list)
    dropout: float = 0.0
    """Share of captions that are left empty."""

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def masks(self) -> int:
        """How many of the pictures have one."""
        return sum(item.mask is not None for item in self.items)

    def buckets(self) -> list[Tensor]:
        """Indices of the pictures of each latent size."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for row, item in enumerate(self.items):
            sizes.setdefault(tuple(item.latent.mean.shape), []).append(row)
        return [torch.tensor(sizes[size]) for size in sorted(sizes)]

    def batch(self, rows: Sequence[int], chance: torch.Generator) -> dict[str, Any]:
        """Tensors of these pictures; all chance (which caption, which prior picture) comes from `chance`."""
        items = [self.items[row] for row in rows]
        batch = self._stack(items, chance, self.dropout)
        if self.prior:
            prior = [self.prior[item.concept][_draw(len(self.prior[item.concept]), chance)] for item in items]
            batch["prior"] = self._stack(prior, chance, 0.0)
        return batch

    def _stack(self, items: list[Example], chance: torch.Generator, dropout: float) -> dict[str, Any]:
        numbers = torch.tensor([item.captions[_draw(len(item.captions), chance)] for item in items])
        if dropout:
            numbers[torch.rand(len(items), generator=chance) < dropout] = 0
        batch = {
            "mean": torch.stack([item.latent.mean for item in items]),
            "logvar": torch.stack([item.latent.logvar for item in items]),
            "sizes": torch.tensor([item.latent.sizes for item in items], dtype=torch.float32),
        }
        if self.masks:
            whole = torch.ones(1, *batch["mean"].shape[-2:])
            batch["counts"] = torch.stack([whole if item.mask is None else item.mask for item in items])
        words = self.captions.take(numbers)
        assert not batch.keys() & words.keys()
        return batch | words


def _draw(count: int, chance: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=chance)) if count > 1 else 0


class BucketBatches(Batches):
    """`Batches` whose steps hold pictures of one bucket each, in an order drawn from (seed, epoch).

    Args:
        repeats: passes over the pictures an epoch: few pictures make long enough epochs.
    """

    def __init__(
        self, examples: Examples, batch_size: int, *, seed: int, repeats: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(examples, batch_size, seed=seed, rank=rank, world_size=world_size)  # type: ignore[arg-type]
        self.examples, self.repeats = examples, repeats
        self.by_bucket = examples.buckets()

    def __len__(self) -> int:
        return sum(-(-len(rows) * self.repeats // self.step_size) for rows in self.by_bucket)

    def steps(self, epoch: int) -> list[Tensor]:
        """The pictures of every step over all processes; a bucket's last step is filled up to a multiple of these."""
        chance = generator_of(self.seed, epoch)
        found: list[Tensor] = []
        for rows in self.by_bucket:
            order = torch.cat([rows[torch.randperm(len(rows), generator=chance)] for _ in range(self.repeats)])
            missing = -len(order) % self.world_size
            order = torch.cat([order, order.repeat(missing // len(order) + 1)[:missing]])
            found += list(order.split(self.step_size))
        return [found[step] for step in torch.randperm(len(found), generator=chance).tolist()]

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        if (self.position and not self._goes_on) or self.position >= len(self):
            self.epoch, self.position = self.epoch + (self.position > 0), 0
        self._goes_on = False
        steps = self.steps(self.epoch)
        for step in range(self.position, len(self)):
            self.position = step + 1  # counted before it is given out: nobody asks again after the last one
            mine = steps[step][self.rank :: self.world_size].tolist()
            yield self.examples.batch(mine, generator_of(self.seed, 1, self.epoch, step, self.rank))
