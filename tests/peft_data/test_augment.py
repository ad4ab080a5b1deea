"""Augmentation is a function of the generator; normalisation is the usual one."""

import pytest
import torch
from peft_data import DataError
from peft_data.augment import AUGMENTATIONS, PLACES, augmentation, crop_flip, flip, jitter, multi_scale, normalise
from peft_data.batches import generator_of


def images(count: int = 8, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_is_a_function_of_the_generator(name) -> None:
    change, batch = augmentation(name), images()
    kept, state = batch.clone(), torch.random.get_rng_state()
    got = change(batch, generator_of(1, 2))
    assert got.dtype == torch.uint8 and got.shape == batch.shape and torch.equal(batch, kept)
    assert torch.equal(got, change(batch, generator_of(1, 2)))
    assert torch.equal(got, change(batch, generator_of(1, 3))) == (name == "none")
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_frames_of_a_clip_are_changed_alike(name) -> None:
    clips = images(3)[:, None].repeat(1, 2, 1, 1, 1)
    got = augmentation(name)(clips, generator_of(1, 2))
    assert got.shape == clips.shape and torch.equal(got[:, 0], got[:, 1])


def test_flip() -> None:
    batch = images(400, 2)
    got = flip(batch, generator_of(0))
    same = (got == batch).flatten(1).all(1)
    assert torch.equal(got[~same], batch[~same].flip(-1)) and 150 < same.sum() < 250


def test_crops_are_parts_of_the_picture() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(200, 3, 64, 64)
    got = crop_flip(ramp, generator_of(0)).float()
    left, right = got[..., 0].mean((1, 2)), got[..., -1].mean((1, 2))
    width = (right - left).abs()
    assert width.min() < 25 and width.max() > 50 and 60 < (left > right).sum() < 140
    assert (got.amax((1, 2, 3)) <= 63).all()
    whole = crop_flip(images(), generator_of(0), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(whole, images(), strict=True))


def ramps(count: int, size: int) -> torch.Tensor:
    """Red says the row, green the column of a pixel."""
    row = torch.arange(size, dtype=torch.uint8).expand(size, size)
    return torch.stack([row.T, row, row]).expand(count, 3, size, size)


def sides(cut: torch.Tensor) -> torch.Tensor:
    """Height and width of the parts of `ramps`, in pixels: what a line of the middle spans, in steps from pixel to pixel."""
    middle = cut.shape[-1] // 2
    height = (cut[:, 0, middle + 16, 0] - cut[:, 0, middle - 16, 0]).float() / 32 * cut.shape[-1]
    width = (cut[:, 1, 0, middle + 16] - cut[:, 1, 0, middle - 16]).float() / 32 * cut.shape[-1]
    return torch.stack([height, width], 1)


def test_multi_scale_takes_one_of_four_sides_at_one_of_thirteen_places() -> None:
    got = multi_scale(ramps(600, 200), generator_of(0), mirror=False)
    known = torch.tensor([200.0, 175, 150, 132])
    apart = (sides(got)[..., None] - known).abs()
    assert apart.amin(-1).max() <= 7  # rounding to whole levels, 200 / 32 of a pixel
    steps = apart.argmin(-1)
    assert (steps[:, 0] - steps[:, 1]).abs().max() == 1 and set(map(tuple, steps.tolist())) == {
        (h, w) for h in range(4) for w in range(4) if abs(h - w) <= 1
    }
    smallest = got[(steps == 3).all(1)]
    corners = set(map(tuple, smallest[:, :2, 0, 0].tolist()))
    assert corners == {(17 * y, 17 * x) for y, x in PLACES}


def test_jitter_is_a_square_of_at_least_the_share_of_the_shorter_side() -> None:
    got = jitter(ramps(400, 200), generator_of(0), mirror=False)
    size = sides(got)
    assert (size[:, 0] - size[:, 1]).abs().max() <= 7 and 170 <= size.min() and size.max() <= 207
    assert got[:, 0, 0, 0].max() > 15 and got[:, 0, 0, 0].min() == 0
    assert torch.equal(jitter(images(), generator_of(0), most=1.0, mirror=False), images())


def test_wide_pictures_fall_back_to_the_whole() -> None:
    batch = torch.randint(0, 256, (4, 3, 4, 64), dtype=torch.uint8)
    got = crop_flip(batch, generator_of(0), scale=(1.0, 1.0))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(got, batch, strict=True))


def test_normalise() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = (images() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalise(images(), mean, std), want, atol=1e-6, rtol=1e-6)
    assert normalise(images(), mean, std, torch.bfloat16).dtype == torch.bfloat16


def test_a_wrong_name() -> None:
    with pytest.raises(DataError, match="no augmentation 'crop-flip' .did you mean 'crop_flip'"):
        augmentation("crop-flip")
