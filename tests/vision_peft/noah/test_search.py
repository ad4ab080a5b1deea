"""Evolution: within the budget, nothing twice, the same for a seed, and no point of the space out of reach."""

import itertools
from random import Random

import pytest

from peft_core import PeftError
from tests.vision_peft.noah.conftest import SPACE, some, stock
from vision_peft.noah.forms import Forms
from vision_peft.noah.search import Candidate, Evolution, Score, best, draw_within, evolve, front
from vision_peft.noah.space import Space, Subnet

TINY = Space(methods=("lora", "adapter"), dims=(1, 2), depths=(1, 2))
QUICK = Evolution(population=12, generations=5, parents=4, mutations=6, crossovers=5)


def rows(space: Space, blocks: int) -> list:
    return [
        (*widths, *[0] * (blocks - depth))
        for depth in space.depths
        for widths in itertools.product(space.dims, repeat=depth)
    ]


def everything(space: Space, blocks: int) -> set[Subnet]:
    return set(itertools.product(rows(space, blocks), repeat=len(space.methods)))


def pretend(subnets: list[Subnet]) -> list[Score]:
    """Likes wide adapters late and nothing else."""
    return [Score(sum(block * width for block, width in enumerate(subnet[-1])), 0.0) for subnet in subnets]


def test_mutation_and_crossover_reach_every_point_of_a_small_space() -> None:
    points, chance = everything(TINY, 2), Random(0)
    assert len(points) == 36
    for start in (min(points), max(points)):
        assert {TINY.mutate(start, chance, 0.8, 0.8) for _ in range(5000)} == points
    one, other = max(points), min(points)
    assert {TINY.cross(one, other, chance) for _ in range(100)} == set(itertools.product(*zip(one, other, strict=True)))


def test_mutation_changes_widths_at_full_depth() -> None:
    start, chance = SPACE.largest(4), Random(0)
    found = [SPACE.mutate(start, chance, 0.5, 0.0) for _ in range(200)]
    assert all(0 not in row for subnet in found for row in subnet)
    assert any(subnet != start for subnet in found)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_budget_is_never_exceeded_and_nothing_comes_twice(forms: Forms, share: float) -> None:
    least, most = forms.count(SPACE.smallest(4)), forms.count(SPACE.largest(4))
    budget = int(least + share * (most - least))
    found = [each for generation in evolve(forms, budget, QUICK, 0, pretend) for each in generation]
    assert all(each.parameters == forms.count(each.subnet) <= budget for each in found)
    assert len({each.subnet for each in found}) == len(found)
    assert len(found) == (1 if share == 0 else 60)


def test_a_small_space_is_searched_through_and_the_search_ends() -> None:
    forms = Forms(stock(), TINY)
    evolution = Evolution(population=30, generations=50)
    calls: list[Subnet] = []

    def score(subnets: list[Subnet]) -> list[Score]:
        calls.extend(subnets)
        return pretend(subnets)

    generations = list(evolve(forms, forms.check_budget(None), evolution, 0, score))
    assert len(generations) < 10 and len(calls) == len(set(calls)) == 36
    assert set(calls) == {tuple((*row, 0, 0) for row in subnet) for subnet in everything(TINY, 2)}


def test_a_seed_gives_the_search_and_it_climbs(forms: Forms) -> None:
    def search(seed: int) -> list[Candidate]:
        return [each for found in evolve(forms, 6000, QUICK, seed, pretend) for each in found]

    assert search(0) == search(0) != search(1)
    first, last = search(0)[:12], search(0)[-12:]
    assert sum(each.score.correct for each in last) > sum(each.score.correct for each in first)
    assert {each.origin for each in last} == {"mutation", "crossover", "random"}


def test_ties_go_to_the_lower_loss_then_to_fewer_parameters() -> None:
    of = {"subnet": (), "generation": 0, "origin": "random"}
    one, two = Candidate(score=Score(5, 0.2), parameters=20, **of), Candidate(score=Score(5, 0.1), parameters=30, **of)
    three, four = (
        Candidate(score=Score(5, 0.1), parameters=10, **of),
        Candidate(score=Score(6, 0.9), parameters=9, **of),
    )
    assert best([one, two, three, four]) == [four, three, two, one]
    assert front([one, two, three]) == [three] and front([four, one]) == [four]


def test_draws_are_made_to_fit(forms: Forms) -> None:
    least, chance = forms.count(SPACE.smallest(4)), Random(0)
    assert {forms.count(draw_within(forms, least, chance)) for _ in range(5)} == {least}
    for subnet in some(SPACE, 5):
        steps = 0
        while subnet != SPACE.smallest(4):
            smaller = SPACE.shrink(subnet, chance)
            assert forms.count(smaller) < forms.count(subnet)
            subnet, steps = smaller, steps + 1
        assert steps < 40


def test_budgets_outside_the_space_say_both_bounds(forms: Forms) -> None:
    least, most = forms.count(SPACE.smallest(4)), forms.count(SPACE.largest(4))
    for budget, side in ((least - 1, "below the smallest"), (most + 1, "above the largest")):
        with pytest.raises(PeftError, match=f"{side}.*inserts {least:,}, the largest {most:,}"):
            forms.check_budget(budget)
    assert forms.check_budget(None) == forms.check_budget(most) == most


@pytest.mark.parametrize("wrong", [{"population": 0}, {"generations": 0}, {"mutations": -1}, {"mutation_rate": 1.5}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(PeftError, match="of a search"):
        Evolution(**wrong)
