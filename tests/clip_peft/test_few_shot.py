"""CoOp's draw against published lists, and base and new classes.

The lists are of linzhiqiu/cross_modal_adaptation, indices/oxford_pets/shot_{1,16}-seed_1.json: rows of the train and val
lists of split_zhou_OxfordPets.json, which hold their classes one after the other.
"""

import random

import pytest
import torch
from peft_data import ClassificationData, DataError, Pictures
from peft_data.base import no_pictures

from clip_peft.training.few_shot import chosen, draw, few_shot, of_classes
from clip_peft.training.twice import same_in_two_classes

TRAIN = [80] * 7 + [77] + [80] * 3 + [74, 77] + [80] * 9 + [77] + [80] * 9 + [79] + [80] * 4
VAL = [20] * 7 + [19] + [20] * 3 + [19, 19] + [20] * 9 + [19] + [20] * 14
ONE_TRAIN = [
    17, 152, 168, 272, 335, 463, 537, 620, 685, 743, 809, 939, 954, 1077, 1163, 1265, 1268, 1405, 1462, 1537, 1663, 1681,
    1788, 1828, 1907, 1988, 2134, 2146, 2273, 2332, 2439, 2468, 2612, 2652, 2760, 2847, 2934,
]  # fmt: skip
ONE_VAL = [
    7, 31, 47, 67, 94, 109, 120, 153, 176, 182, 204, 228, 241, 267, 293, 310, 333, 343, 366, 386, 415, 432, 453, 468, 494,
    497, 531, 543, 568, 589, 601, 627, 653, 667, 678, 710, 732,
]  # fmt: skip
SIXTEEN_FIRST = [
    17, 72, 8, 32, 15, 63, 57, 60, 48, 26, 12, 62, 3, 49, 55, 0, 137, 114, 109, 155, 93, 120, 83, 82, 153, 149, 81, 128,
    107, 134, 151, 108, 216, 223, 230, 189, 204, 236, 188, 218, 197, 162, 213, 172, 183, 231, 175, 202,
]  # fmt: skip
SIXTEEN_LAST = [
    2799, 2840, 2841, 2828, 2823, 2853, 2835, 2827, 2847, 2798, 2832, 2858, 2810, 2784, 2819, 2809, 2923, 2940, 2930, 2916,
    2903, 2885, 2921, 2931, 2889, 2910, 2936, 2864, 2913, 2918, 2915, 2907,
]  # fmt: skip


def labels(sizes: list[int]) -> list[int]:
    return [label for label, size in enumerate(sizes) for _ in range(size)]


def data(counts: list[int], val: int = 5, test: int = 2) -> ClassificationData:
    def split(sizes: list[int]) -> Pictures:
        own = torch.tensor(labels(sizes), dtype=torch.int64)
        return Pictures(torch.zeros(len(own), 3, 2, 2, dtype=torch.uint8) + own[:, None, None, None].byte(), own)

    names = tuple(f"class {i}" for i in range(len(counts)))
    held = [split([n] * len(counts)) if n else no_pictures() for n in (val, test)]
    return ClassificationData("drawn", names, split(counts), *held)


def test_the_published_lists():
    assert (sum(TRAIN), sum(VAL)) == (2944, 736)
    chance = random.Random(1)
    assert draw(labels(TRAIN), 1, chance) == ONE_TRAIN and draw(labels(VAL), 1, chance) == ONE_VAL
    drawn = draw(labels(TRAIN), 16, random.Random(1))
    assert len(drawn) == 592 and drawn[:48] == SIXTEEN_FIRST and drawn[-32:] == SIXTEEN_LAST


def test_classes_come_in_the_order_of_their_first_picture():
    mixed = [2, 0, 2, 1, 0, 1, 2, 0]
    rows = draw(mixed, 2, random.Random(3))
    assert [mixed[row] for row in rows] == [2, 2, 0, 0, 1, 1]


def test_shots_of_train_and_val():
    drawn = few_shot(data([20] * 4), 16, 1)
    assert (
        torch.bincount(drawn.train.labels).tolist() == [16] * 4 and torch.bincount(drawn.val.labels).tolist() == [4] * 4
    )
    assert len(drawn.test) == 8 and not drawn.notes
    assert torch.bincount(few_shot(data([20] * 4), 2, 1).val.labels).tolist() == [2] * 4
    assert few_shot(data([20] * 4, val=0), 2, 1).val.labels.numel() == 0
    whole = data([20] * 4)
    assert few_shot(whole, 0, 1) is whole
    with pytest.raises(DataError, match="shots must be 1 or more, or 0 for all pictures, not -1"):
        few_shot(whole, -1, 1)


def test_a_class_with_fewer_pictures_is_named():
    drawn = few_shot(data([20, 3, 16, 1]), 16, 1)
    assert torch.bincount(drawn.train.labels).tolist() == [16, 3, 16, 1]
    assert drawn.notes == (
        "these classes have fewer than 16 pictures and train with what there is: class 1 3, class 3 1",
    )


def test_base_is_the_first_half_and_new_the_rest():
    whole = data([3] * 5)
    base, new = of_classes(whole, "base"), of_classes(whole, "new")
    assert base.class_names == ("class 0", "class 1", "class 2") and new.class_names == ("class 3", "class 4")
    for part, first in ((base, 0), (new, 3)):
        for split in (part.train, part.val, part.test):
            assert sorted(set(split.labels.tolist())) == list(range(len(part.class_names)))
            assert torch.equal(split.items[:, 0, 0, 0].long(), split.labels + first)  # the pictures moved along
    assert of_classes(whole, "all") is whole
    with pytest.raises(DataError, match="too few for base and new"):
        of_classes(data([3] * 3), "new")


def test_the_draw_comes_before_the_classes():
    whole = data([20] * 6)
    base = chosen(whole, 4, 2, "base")
    both = few_shot(whole, 4, 2)
    assert torch.equal(base.train.items, both.train.items[:12]) and len(base.train) == 12


def test_a_part_of_each_class_is_held_out():
    whole = data([20] * 3)
    drawn = chosen(whole, 5, 1, "all", hold_out=0.2)
    draw = few_shot(whole, 5, 1).train
    assert drawn.val.labels.tolist() == [0, 1, 2] and len(drawn.train) == 12 and len(drawn.test) == len(whole.test)
    assert torch.equal(drawn.val.items, draw.items[::5])  # the first of each class
    with pytest.raises(DataError, match="of class 0 all 1 training pictures would be held out"):
        chosen(whole, 1, 1, "all", hold_out=0.2)


def test_a_natural_draw_takes_pictures_whatever_their_class():
    whole = data([40, 4, 2])
    drawn = few_shot(whole, 4, 1, "natural")
    counts = torch.bincount(drawn.train.labels, minlength=3).tolist()
    assert sum(counts) == 12 and counts[0] > 6
    assert f"classes have {min(counts)} to {max(counts)} training pictures" in drawn.notes[-1]
    again = few_shot(whole, 4, 1, "natural")
    assert torch.equal(again.train.labels, drawn.train.labels)
    assert len(few_shot(whole, 100, 1, "natural").train) == 46


def test_the_same_picture_in_two_classes_is_told(tmp_path):
    for name, content in (("a", b"1234"), ("b", b"1234"), ("c", b"4321"), ("d", b"1234")):
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in "abcd"]
    note = same_in_two_classes(Pictures(files, torch.tensor([0, 0, 1, 1]), tmp_path))
    assert note == "the same picture stands in two classes, so one of its labels is wrong: a = d"
    assert same_in_two_classes(Pictures(files, torch.tensor([0, 0, 1, 0]), tmp_path)) is None
    pixels = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    assert "train/000000 = train/000002" in str(
        same_in_two_classes(Pictures(pixels, torch.tensor([0, 0, 1]), split="train"))
    )
