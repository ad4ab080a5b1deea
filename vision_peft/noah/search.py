"""Evolution: from random subnets, by mutation and crossover of the best, to one that scores well within the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from peft_core.errors import PeftError
from peft_core.values import Count, Share, Whole
from vision_peft.noah.forms import Forms
from vision_peft.noah.space import Subnet

TRIES = 10
"""Attempts for each subnet asked of an operator; most fail as duplicates or over the budget."""
DRAWS = 20
"""Draws that may exceed the budget before one is made to fit."""


@dataclass(frozen=True)
class Evolution:
    """The budget of a search; the defaults are those of the authors' search scripts (15 generations; their code's own are 20).

    Args:
        population: Subnets that are scored in each generation.
        generations: Of them the first is all random.
        parents: The best of all so far, from which the next generation comes.
        mutations: Subnets of a generation that are mutated parents.
        crossovers: Subnets of a generation that mix two parents; random ones fill up.
        mutation_rate: Of each method, and of each of its widths where it changes.
        depth_rate: Of a new depth, where a method changes.

    Raises:
        PeftError: a number below 1, or a probability outside [0, 1].
    """

    population: Count = 50
    generations: Count = 15
    parents: Count = 10
    mutations: Whole = 25
    crossovers: Whole = 25
    mutation_rate: Share = 0.2
    depth_rate: Share = 0.4

    def __post_init__(self) -> None:
        if min(self.population, self.generations, self.parents) < 1 or min(self.mutations, self.crossovers) < 0:
            raise PeftError("population, generations and parents of a search must be 1 or more, the others 0 or more.")
        if not (0 <= self.mutation_rate <= 1 and 0 <= self.depth_rate <= 1):
            raise PeftError("mutation_rate and depth_rate of a search are probabilities, from 0 to 1.")


class Score(NamedTuple):
    """On val with inherited weights: pictures that are classified rightly, and the mean cross-entropy to 4 decimals."""

    correct: int
    loss: float


@dataclass(frozen=True)
class Candidate:
    """A subnet that was scored.

    Args:
        parameters: that it inserts.
        origin: random, mutation or crossover.
    """

    subnet: Subnet
    score: Score
    parameters: int
    generation: int
    origin: str


def evolve(
    forms: Forms, budget: int, evolution: Evolution, seed: int, score: Callable[[list[Subnet]], list[Score]]
) -> Iterator[list[Candidate]]:
    """The candidates of each generation. None comes twice, none exceeds the budget; it ends early where nothing new is found.

    Args:
        seed: the same one gives the same search.
        score: of several subnets.
    """
    chance, seen = Random(seed), dict[Subnet, Candidate]()
    for generation in range(evolution.generations):
        new = next_generation(forms, budget, evolution, chance, seen)
        if not new:
            return
        scores = score(list(new))
        found = [
            Candidate(subnet, each, forms.count(subnet), generation, origin)
            for (subnet, origin), each in zip(new.items(), scores, strict=True)
        ]
        seen |= {each.subnet: each for each in found}
        yield found


def next_generation(
    forms: Forms, budget: int, evolution: Evolution, chance: Random, seen: dict[Subnet, Candidate]
) -> dict[Subnet, str]:
    """New subnets within the budget, and where each comes from."""
    new: dict[Subnet, str] = {}

    def add(origin: str, make: Callable[[], Subnet], count: int) -> None:
        wanted = min(evolution.population, len(new) + count)
        for _ in range(TRIES * count):
            if len(new) >= wanted:
                return
            subnet = make()
            if subnet not in seen and subnet not in new and forms.count(subnet) <= budget:
                new[subnet] = origin

    space, parents = forms.space, [each.subnet for each in best(list(seen.values()))[: evolution.parents]]
    rates = (evolution.mutation_rate, evolution.depth_rate)

    def crossed() -> Subnet:
        one, other = chance.sample(parents, 2)
        return space.cross(one, other, chance)

    if parents:
        add("mutation", lambda: space.mutate(chance.choice(parents), chance, *rates), evolution.mutations)
    if len(parents) > 1:
        add("crossover", crossed, evolution.crossovers)
    add("random", lambda: draw_within(forms, budget, chance), evolution.population - len(new))
    return new


def best(candidates: list[Candidate]) -> list[Candidate]:
    """Most right answers first. 200 pictures leave many ties: then the lower loss, fewer parameters, the one found first."""
    return sorted(candidates, key=lambda each: (-each.score.correct, each.score.loss, each.parameters))


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that none with as few parameters beats, from small to large."""
    found: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.parameters, -each.score.correct)):
        if not found or each.score.correct > found[-1].score.correct:
            found.append(each)
    return found


def draw_within(forms: Forms, budget: int, chance: Random) -> Subnet:
    """A random subnet within the budget: the first of `DRAWS` that is, else the last one, made smaller step by step."""
    for _ in range(DRAWS):
        subnet = forms.space.draw(chance, forms.blocks)
        if forms.count(subnet) <= budget:
            return subnet
    while forms.count(subnet) > budget:
        subnet = forms.space.shrink(subnet, chance)
    return subnet
