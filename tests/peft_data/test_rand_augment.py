"""timm's scale of RandAugment: what each operation does at a level, and how operations are drawn."""

import random

import numpy as np
import pytest
import torch
from peft_data.chance import generator_of
from peft_data.rand_augment import KINDS, drawn_changes
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, AugmentOp

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


@pytest.mark.parametrize("level", [0.0, 3.0, 7.0, 9.9])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_operations_are_timms(kind: int, level: float, monkeypatch) -> None:
    name = _RAND_INCREASING_TRANSFORMS[kind]
    for sign, negates in ((1.0, 0.0), (-1.0, 0.9)):  # timm draws the sign by `random() > 0.5`
        monkeypatch.setattr(random, "random", lambda value=negates: value)
        settings = {"interpolation": Image.Resampling.BILINEAR, "img_mean": (128, 128, 128)}
        want = AugmentOp(name, prob=1.0, magnitude=level, hparams=settings)(PICTURE)
        got = KINDS[kind](level / 10, sign)(PICTURE)
        assert np.abs(np.asarray(got).astype(int) - np.asarray(want).astype(int)).max() <= 1


def test_each_of_four_is_done_with_probability_one_half() -> None:
    counts = torch.tensor([len(drawn_changes(generator_of(seed))) for seed in range(2000)])
    share = torch.bincount(counts, minlength=5) / 2000
    torch.testing.assert_close(share, torch.tensor([1, 4, 6, 4, 1]) / 16, atol=0.035, rtol=0)


def test_levels_are_normal_around_the_magnitude_and_cut() -> None:
    seen: list[float] = []
    for seed in range(300):
        for change in drawn_changes(generator_of(seed), operations=1, magnitude=10, chance=1.0):
            cells = change.__closure__ or ()
            seen += [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, float)]
    shifts = [abs(value) for value in seen if 0 < abs(value) <= 0.45 + 1e-6]
    assert shifts and max(shifts) <= 0.45 + 1e-6
