"""Each few-shot set is seen in a way of its own, the same for all its pictures."""

import pytest
import torch
from peft_data.world.draw import Draw
from peft_data.world.open import SETS, draw_set
from peft_data.world.shifts import SHIFTS, by_lamplight, close_up, in_fog, in_water, shifted


def picture(n: int = 2, size: int = 40) -> torch.Tensor:
    """Left half red, right half blue, with a white bar at the top."""
    made = torch.zeros(n, 3, size, size)
    made[:, 0, :, : size // 2] = made[:, 2, :, size // 2 :] = 1.0
    made[:, :, : size // 5] = 1.0
    return made


def test_every_set_has_one_and_bytes_stay_bytes() -> None:
    assert SHIFTS.keys() == SETS.keys()
    pictures = (picture(3) * 255).byte()
    for task in SETS:
        first, again = (shifted(task, Draw("open", task), pictures) for _ in range(2))
        assert first.dtype == torch.uint8 and first.shape == pictures.shape
        assert torch.equal(first, again) and not torch.equal(first, pictures)


def test_lamplight_is_warm_and_leaves_what_is_there() -> None:
    seen = by_lamplight(Draw("x"), picture())
    white = seen[:, :, :8].mean((0, 2, 3))
    assert white[0] > white[1] > white[2]
    assert (seen[:, 0, 20:, :20].mean() - seen[:, 0, 20:, 20:].mean()) > 0.5


def test_a_reflection_is_upside_down() -> None:
    seen = in_water(Draw("x"), picture())
    assert seen[:, 1, -6:].mean() > 0.8 and seen[:, 1, :30].mean() < 0.15
    assert (seen[:, 0, :20, :18].mean() - seen[:, 0, :20, 22:].mean()) > 0.7  # left stays left


def test_fog_takes_contrast_and_a_close_up_the_edge() -> None:
    seen = in_fog(Draw("x"), picture())
    assert 0.2 < seen.std() / picture().std() < 0.6 and seen.min() > 0.35
    near = close_up(Draw("x"), picture())
    assert near[:, 1].mean() < 0.6 * picture()[:, 1].mean()  # the bar at the top is half as high


@pytest.mark.parametrize("size", [24, 40, 56])
def test_any_size(size: int) -> None:
    for task in SETS:
        assert draw_set(task, "train", 1, size=size)[0].shape == (32, 3, size, size)
