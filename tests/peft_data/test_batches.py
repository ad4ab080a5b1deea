"""The order is a function of seed and epoch; processes share it; an interrupted run goes on with the same batches."""

import pytest
import torch
from peft_data import DataError
from peft_data.batches import Batches, generator_of
from peft_data.cache import DecodedPictures


def pictures(count: int = 10) -> DecodedPictures:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2).contiguous()
    return DecodedPictures(images, torch.arange(count) % 3, tuple(map(str, range(count))))


def epoch(batches: Batches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def test_a_batch_is_what_its_indices_say() -> None:
    for batch in Batches(pictures(), 4):
        assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 2, 2)
        assert torch.equal(batch.images[:, 1, 1, 0].long(), batch.indices)
        assert torch.equal(batch.labels, batch.indices % 3)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    one, same, other = Batches(pictures(), 4), Batches(pictures(), 4), Batches(pictures(), 4, seed=1)
    first, second = epoch(one), epoch(one)
    assert [len(batch) for batch in first] == [4, 4, 2] and sorted(sum(first, [])) == list(range(10))
    assert first != second and epoch(other) != first
    same.set_epoch(1)
    assert epoch(same) == second and epoch(same) == epoch(one)
    same.set_epoch(0)
    assert epoch(same) == first
    assert epoch(Batches(pictures(), 4, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_pass_that_was_left_is_not_gone_on_with() -> None:
    batches = Batches(pictures(), 4)
    next(iter(batches))
    want = Batches(pictures(), 4)
    want.set_epoch(1)
    assert epoch(batches) == epoch(want)


def test_drop_last() -> None:
    batches = Batches(pictures(), 4, drop_last=True)
    assert len(batches) == 2 and [len(batch) for batch in epoch(batches)] == [4, 4]
    with pytest.raises(DataError, match="10 pictures but a step takes 16"):
        Batches(pictures(), 8, drop_last=True, world_size=2)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10, 11, 16])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_see_what_one_sees(count, drop_last) -> None:
    if drop_last and count < 4:
        return
    whole = Batches(pictures(count), 4, drop_last=drop_last)
    parts = [Batches(pictures(count), 2, drop_last=drop_last, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        steps = list(zip(*map(epoch, parts), strict=True))
        for want, (a, b) in zip(epoch(whole), steps, strict=True):
            assert len(a) == len(b) == -(-len(want) // 2)
            assert set(want) <= {*a, *b} if len(want) % 2 else sorted(a + b) == sorted(want)


@pytest.mark.parametrize("count", range(1, 13))
def test_evaluation_sees_each_picture_once(count) -> None:
    parts = [Batches(pictures(count), 2, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    passes = [epoch(part) for part in parts]
    assert [len(steps) for steps in passes] == [len(part) for part in parts]
    assert sorted(i for steps in passes for batch in steps for i in batch) == list(range(count))
    assert all(batch for steps in passes for batch in steps)


@pytest.mark.parametrize("stop", range(9))
def test_it_goes_on_with_the_same_batches(stop) -> None:
    def run(batches: Batches, steps: int) -> list[list[int]]:
        seen: list[list[int]] = []
        while len(seen) < steps:
            for batch in batches:
                seen.append(batch.indices.tolist())
                if len(seen) == steps:
                    return seen
        return seen

    want = run(Batches(pictures(), 4, seed=5), 9)
    first = Batches(pictures(), 4, seed=5)
    before = run(first, stop)
    again = Batches(pictures(), 4, seed=5)
    again.load_state_dict(first.state_dict())
    assert before + run(again, 9 - stop) == want


def test_it_goes_on_with_other_processes_at_the_same_step_size() -> None:
    one = Batches(pictures(8), 4)
    steps = iter(one)
    next(steps)
    rest = next(steps).indices.tolist()
    two = Batches(pictures(8), 2, rank=1, world_size=2)
    two.load_state_dict({**one.state_dict(), "position": 1})
    assert epoch(two) == [rest[1::2]]


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 5}, {"pictures": pictures(11)}])
def test_another_run_cannot_be_gone_on_with(other) -> None:
    with pytest.raises(DataError, match="start it with the same data, seed and batch size"):
        changed = Batches(**{"pictures": pictures(), "batch_size": 4, **other})
        changed.load_state_dict(Batches(pictures(), 4).state_dict())


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="batch size must be 1 or more"):
        Batches(pictures(), 0)
    with pytest.raises(DataError, match="rank 2 is not one of 2"):
        Batches(pictures(), 4, rank=2, world_size=2)


def test_generators_of_near_numbers_differ() -> None:
    draws = {torch.rand(1, generator=generator_of(a, b)).item() for a in range(20) for b in range(20)}
    assert len(draws) == 400
    assert torch.rand(1, generator=generator_of(3, 4)) == torch.rand(1, generator=generator_of(3, 4))
