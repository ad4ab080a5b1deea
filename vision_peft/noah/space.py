"""The search space: which methods, how wide in a block, in how many blocks; and how subnets are drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from peft_core.errors import PeftError
from peft_core.values import Count, Rate, Whole, Widths
from vision_peft.methods.noah import NOAH

Row = tuple[int, ...]
"""A method's width in each block; 0 where it is absent."""
Subnet = tuple[Row, ...]
"""One row a method, in the order of `Space.methods`."""


@dataclass(frozen=True)
class Space:
    """Each method stands in the first k blocks, k one of `depths`, with one of `dims` in each of them.

    Args:
        methods: Methods with a width; vpt, lora and adapter are set as in the paper.
        dims: Widths to choose from.
        depths: Numbers of blocks to choose from.
        dropout: Of every module that has one, in all stages.
        settings: METHOD: {SETTING: VALUE}, over the paper's.

    Raises:
        PeftError: an empty list, a width below 1, a depth below 0.
    """

    methods: tuple[str, ...] = ("vpt", "lora", "adapter")
    dims: tuple[Count, ...] = (1, 5, 10)
    depths: tuple[Whole, ...] = (3, 6, 9, 12)
    dropout: Rate = 0.0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        for name, least in (("dims", 1), ("depths", 0)):
            values = sorted(set(getattr(self, name)))
            if not values or values[0] < least or values[-1] < 1:
                raise PeftError(f"the space's {name} must be {least} or more each, not {list(getattr(self, name))}.")
            object.__setattr__(self, name, tuple(values))
        if not self.methods:
            raise PeftError("the space needs methods, e.g. vpt lora adapter.")

    def check_depth(self, blocks: int) -> None:
        """Raises PeftError unless a backbone of so many blocks holds every depth."""
        if self.depths[-1] > blocks:
            fitting = " ".join(str(depth) for depth in self.depths if depth <= blocks) or str(blocks)
            raise PeftError(
                f"the space goes {self.depths[-1]} blocks deep, but the backbone has {blocks}: give --space.depths {fitting}."
            )

    def plain(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def method(self, subnet: Subnet) -> NOAH:
        """The method that a subnet is."""
        settings = {name: self.settings[name] for name in self.methods if name in self.settings}
        widths: dict[str, Widths] = {**self.widths(subnet)}
        return NOAH(widths=widths, dropout=self.dropout, settings=settings)

    def widths(self, subnet: Subnet) -> dict[str, list[int]]:
        return {name: list(row) for name, row in zip(self.methods, subnet, strict=True)}

    def read(self, widths: Mapping[str, Sequence[int]]) -> Subnet:
        """The inverse of `widths`."""
        return tuple(tuple(widths[name]) for name in self.methods)

    def uniform(self, width: int, depth: int, blocks: int) -> Subnet:
        return (_row([width] * depth, blocks),) * len(self.methods)

    def widest(self, blocks: int) -> Subnet:
        return self.uniform(self.dims[-1], blocks, blocks)

    def largest(self, blocks: int) -> Subnet:
        return self.uniform(self.dims[-1], self.depths[-1], blocks)

    def smallest(self, blocks: int) -> Subnet:
        return self.uniform(self.dims[0], self.depths[0], blocks)

    def draw(self, chance: Random, blocks: int) -> Subnet:
        """Depth and widths of each method, independently and uniformly."""
        return tuple(_row(self._widths(chance, chance.choice(self.depths)), blocks) for _ in self.methods)

    def _widths(self, chance: Random, count: int) -> list[int]:
        return [chance.choice(self.dims) for _ in range(count)]

    def mutate(self, subnet: Subnet, chance: Random, rate: float, depth_rate: float) -> Subnet:
        """A neighbour: each method changes with probability `rate`. A method that changes draws its depth anew with
        probability `depth_rate`, and each of its widths with probability `rate`.

        The original changes depths alone, so from full depth its mutations can only shorten.
        """
        rows = []
        for row in subnet:
            if chance.random() < rate:
                depth = depth_of(row)
                if chance.random() < depth_rate:
                    depth = chance.choice(self.depths)
                kept = [chance.choice(self.dims) if chance.random() < rate else width for width in row[:depth] if width]
                row = _row(kept + self._widths(chance, depth - len(kept)), len(row))
            rows.append(row)
        return tuple(rows)

    def cross(self, one: Subnet, other: Subnet, chance: Random) -> Subnet:
        """Each method's whole row from either parent."""
        return tuple(chance.choice(pair) for pair in zip(one, other, strict=True))

    def shrink(self, subnet: Subnet, chance: Random) -> Subnet:
        """One step smaller: one width, or one method's depth, goes to the next smaller value."""
        steps: list[tuple[int, Row]] = []
        for number, row in enumerate(subnet):
            depth = depth_of(row)
            if depth > self.depths[0]:
                shorter = max(each for each in self.depths if each < depth)
                steps.append((number, _row(list(row[:shorter]), len(row))))
            for block, width in enumerate(row[:depth]):
                if width > self.dims[0]:
                    narrower = max(each for each in self.dims if each < width)
                    steps.append((number, (*row[:block], narrower, *row[block + 1 :])))
        number, row = chance.choice(steps)
        return (*subnet[:number], row, *subnet[number + 1 :])


def depth_of(row: Row) -> int:
    """Blocks that the method stands in: the first ones."""
    return sum(width > 0 for width in row)


def _row(widths: list[int], blocks: int) -> Row:
    return (*widths, *[0] * (blocks - len(widths)))
