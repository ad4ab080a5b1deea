"""Splits that a seed draws keep exact sizes and even classes."""

import pytest
import torch
from peft_data.base import Pictures
from peft_data.splits import stratified, tenth_as_val


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_exact_and_classes_even(seed) -> None:
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 7 + [3])
    parts = stratified(labels, (94, 32, 32), seed)
    assert [len(part) for part in parts] == [94, 32, 32]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(158))
    for part, share in zip(parts, (94 / 158, 32 / 158, 32 / 158), strict=True):
        counts = labels[part].bincount(minlength=4)
        assert ((counts - share * labels.bincount()).abs() <= 1.5).all()
    assert labels[parts[0]].bincount(minlength=4).min() == 1
    assert torch.equal(parts[1], stratified(labels, (94, 32, 32), seed)[1])
    assert not torch.equal(parts[1], stratified(labels, (94, 32, 32), seed + 1)[1])


def test_a_tenth_of_little_is_nothing() -> None:
    train = Pictures(torch.zeros(9, 3, 1, 1, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    assert [len(part) for part in tenth_as_val(train, 0)] == [9, 0]
