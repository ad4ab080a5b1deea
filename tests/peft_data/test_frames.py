"""Random parts are cut from the file's own frame, whether it is kept, kept smaller, or decoded when asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError, Pictures
from peft_data.augment import AUGMENTATIONS, augment_of
from peft_data.cache import decode
from peft_data.chance import generator_of
from peft_data.crops import cut, jitter_part, multi_scale_part, random_part
from peft_data.frames import REACH, FramedPictures, decode_for_training, draw, framed
from peft_data.pictures import Fit, own_size
from peft_data.video.batches import batches_of
from PIL import Image, ImageDraw

SIZE = 48


@pytest.fixture
def split(tmp_path: Path) -> Pictures:
    """Six pictures 240 × 180 with red margins, detail inside; one JPEG is turned by EXIF, one lies in a PNG."""
    chance = np.random.default_rng(0)
    paths = []
    for i in range(6):
        image = Image.fromarray(np.repeat(chance.integers(0, 256, (180, 240, 1), dtype=np.uint8), 3, 2))
        ImageDraw.Draw(image).rectangle((0, 0, 29, 180), fill="red")
        ImageDraw.Draw(image).rectangle((210, 0, 240, 180), fill="red")
        paths.append(tmp_path / f"d/{i}.{'png' if i == 5 else 'jpg'}")
        paths[-1].parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[274] = 6 if i == 4 else 1
        image.save(paths[-1], quality=95, exif=exif)
    return Pictures(paths, torch.arange(6) % 2, root=tmp_path / "d")


def parts_of(split: Pictures, augment: str = "crop", draws: int = 40, **how) -> torch.Tensor:
    framed = decode_for_training(split, SIZE, augment, **how)
    assert isinstance(framed, FramedPictures)
    rows = range(len(framed))
    return torch.stack([framed.augmented(rows, augment, seed) for seed in range(draws)])


def test_margins_and_detail_of_the_file_are_seen(split: Pictures) -> None:
    parts = parts_of(split).int().flatten(0, 1)
    red = ((parts[:, 0] - parts[:, 1]) > 100).flatten(1).any(1).float().mean()
    detail = (parts[..., 1:] - parts[..., :-1]).abs().float().mean()
    whole = decode(split, SIZE, "crop", crop_pct=0.9).images.int()
    assert not (
        (whole[:4, 0] - whole[:4, 1]) > 100
    ).any()  # the centre square has no margin, so no part of it would have
    assert 0.4 < red < 0.9
    assert detail > 1.3 * (whole[..., 1:] - whole[..., :-1]).abs().float().mean()


def test_a_part_is_what_pillow_cuts_from_the_file(split: Pictures) -> None:
    framed = decode_for_training(split, SIZE, "crop_flip")
    for row in range(len(split)):
        drawn = draw(framed.augment, framed.own[row], generator_of(7, row))
        top, left, height, width = drawn.part
        with Image.open(split.items[row]) as image:
            upright = image.transpose(Image.Transpose.ROTATE_270) if row == 4 else image
            want = upright.convert("RGB").crop((left, top, left + width, top + height)).resize((SIZE, SIZE), 3)
        want = np.asarray(want.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.mirrored else want).astype(int)
        got = framed.cut(row, generator_of(7, row)).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(got - want).max() <= 3
    assert framed.own[0] == (180, 240) and framed.own[4] == (240, 180) == own_size(split.items[4])


def test_frames_that_are_not_kept_give_the_same_parts(split: Pictures, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VISUAL_PEFT_CACHE", str(tmp_path / "cache"))
    kept = parts_of(split, "crop_flip", draws=8).float()
    asked = parts_of(split, "crop_flip", draws=8, ram_limit=100).float()
    assert decode_for_training(split, SIZE, "crop", ram_limit=100).kept is None
    assert (kept - asked).abs().mean() < 6  # a JPEG may be decoded at half its size: twice the model's, at least
    (note,) = (tmp_path / "cache/pictures").glob("*.u8")  # that all can be read is known the next time
    assert note.stat().st_size < 500
    for folder in ({"cache_dir": tmp_path / "c"}, {"cache_dir": tmp_path / "c", "ram_limit": 100}):
        assert torch.equal(parts_of(split, "crop_flip", draws=8, **folder).float(), kept)


def test_large_frames_are_kept_smaller_with_the_same_shares(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, 900), np.linspace(0, 255, 600))
    Image.fromarray(np.stack([down, across, down], 2).round().astype(np.uint8)).save(tmp_path / "a.png")
    framed = decode_for_training(Pictures([tmp_path / "a.png"], torch.zeros(1).long()), SIZE, "crop")
    assert framed.kept is not None and framed.kept[0].shape == (SIZE * REACH, SIZE * REACH * 3 // 2, 3)
    for seed in range(20):
        top, left, height, width = draw(framed.augment, framed.kept[0].shape[:2], generator_of(seed)).part
        part = framed.cut(0, generator_of(seed)).float()
        middle = part[:, SIZE // 2 - 1 : SIZE // 2 + 1, SIZE // 2 - 1 : SIZE // 2 + 1].mean((1, 2))
        middles = (top + height / 2) / (SIZE * REACH), (left + width / 2) / (SIZE * REACH * 3 // 2)
        want = torch.tensor(middles) * 255
        torch.testing.assert_close(middle[:2], want, atol=1.5, rtol=0)


def test_a_box_of_a_smaller_frame_reads_nothing_outside_it() -> None:
    frame = np.zeros((50, 50, 3), np.uint8)
    frame[10:20, 10:20] = 200
    got = cut(frame, (20, 20, 20, 20), (100, 100), (16, 16), "bicubic")
    assert got.min() == 200
    assert cut(frame, (21, 21, 17, 17), (100, 100), (16, 16), "bicubic").min() == 200


@pytest.mark.parametrize("draw_parts", [random_part, multi_scale_part, jitter_part])
def test_parts_lie_inside_pictures_of_any_shape(draw_parts) -> None:
    heights, widths = torch.tensor([1, 1, 500, 7, 224] * 40), torch.tensor([1, 300, 2, 9, 224] * 40)
    top, left, height, width = draw_parts(heights, widths, generator_of(0)).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def test_shares_of_the_area() -> None:
    sides = torch.full((4000,), 1000), torch.full((4000,), 800)
    for name, least in (("crop_flip", 0.08), ("crop_half_flip", 0.5)):
        parts = augment_of(name).parts
        assert parts is not None
        _, _, height, width = parts(*sides, generator_of(0)).double().unbind(1)
        share, aspect = height * width / 800_000, width / height
        assert least - 0.002 < share.min() < least + 0.01 and share.max() > 0.95
        assert 0.745 < aspect.min() < 0.78 and 1.29 < aspect.max() < 1.34


def test_batches_are_a_function_of_seed_and_epoch_and_can_be_gone_on_with(split: Pictures) -> None:
    framed = decode_for_training(split, SIZE, "crop_flip", workers=2)
    batches = batches_of(framed, 2, seed=3)
    first, second = [list(batches) for _ in range(2)]
    assert [b.images.shape for b in first] == [(2, 3, SIZE, SIZE)] * 3 and first[0].images.dtype == torch.uint8
    order = torch.cat([b.indices for b in first])
    same = {int(row): image for b in second for row, image in zip(b.indices, b.images, strict=True)}
    assert not any(
        torch.equal(same[int(row)], image) for b in first for row, image in zip(b.indices, b.images, strict=True)
    )
    assert sorted(order.tolist()) == list(range(6)) and torch.equal(first[0].labels, split.labels[first[0].indices])
    again = batches_of(decode_for_training(split, SIZE, "crop_flip"), 2, seed=3)
    steps = iter(again)
    next(steps)
    gone_on = batches_of(framed, 2, seed=3)
    gone_on.load_state_dict(again.state_dict())
    for got, want in zip(list(gone_on), first[1:], strict=True):
        assert torch.equal(got.images, want.images)
    shared = [batches_of(framed, 1, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    for left, right, want in zip(*shared, first, strict=True):
        assert torch.equal(torch.cat([left.images, right.images]), want.images)


def test_what_is_left_to_be_done_to_batches(split: Pictures) -> None:
    assert decode(split, SIZE).remaining("flip") == "flip"
    assert decode_for_training(split, SIZE, "crop_flip").remaining("crop_flip") == "none"
    assert decode_for_training(split, SIZE, "randaug_crop").remaining("randaug_crop") == "randaug_four"
    with pytest.raises(DataError, match="no augmentation 'crops'"):
        decode_for_training(split, SIZE, "crops")


@pytest.mark.parametrize("limit", [2 << 30, 100])
def test_bad_pictures_are_named_before_training(split: Pictures, tmp_path: Path, monkeypatch, limit: int) -> None:
    monkeypatch.setenv("VISUAL_PEFT_CACHE", str(tmp_path / "cache"))
    split.items[1].write_bytes(split.items[1].read_bytes()[:3000])
    split.items[3].write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 6 pictures cannot be read.*\n  1\.jpg: .*\n  3\.jpg: is no picture"):
            decode_for_training(split, SIZE, "crop", ram_limit=limit)
        framed = decode_for_training(split, SIZE, "crop", on_bad_image="skip", ram_limit=limit)
        assert [name for name, _ in framed.skipped] == ["1.jpg", "3.jpg"] and len(framed) == len(framed.own) == 4
        assert framed.labels.tolist() == [0, 0, 0, 1] and framed.augmented(range(4), "crop", 0).shape == (
            4,
            3,
            SIZE,
            SIZE,
        )


def test_a_picture_that_is_damaged_while_training_is_named(split: Pictures, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VISUAL_PEFT_CACHE", str(tmp_path / "cache"))
    framed = decode_for_training(split, SIZE, "crop", ram_limit=100)
    os.truncate(split.items[2], 10)
    with pytest.raises(DataError, match="2.jpg .*mend or remove it"):
        list(batches_of(framed, 6, seed=0))


def test_pictures_that_are_decoded_already_are_cut_as_they_are() -> None:
    images = torch.randint(0, 256, (4, 3, 50, 70), dtype=torch.uint8)
    framed = decode_for_training(Pictures(images, torch.arange(4)), SIZE, "crop")
    top, left, height, width = draw(framed.augment, (50, 70), generator_of(0, 1, 2)).part
    want = torch.nn.functional.interpolate(
        images[2:3, :, top : top + height, left : left + width], (SIZE, SIZE), mode="bicubic", antialias=True
    )
    got = framed.augmented([2], "crop", 0, 1)
    assert (got.int() - want.int()).abs().max() <= 1
    assert framed.whole([0, 1]).shape == (2, 3, SIZE, SIZE) and framed.digest()
    other = decode_for_training(Pictures(images.flip(0), torch.arange(4)), SIZE, "crop")
    assert other.digest() != framed.digest()


def test_whole_pictures_are_those_of_evaluation(split: Pictures) -> None:
    framed = decode_for_training(split, SIZE, "crop", mode="crop", crop_pct=0.9)
    assert torch.equal(framed.whole(range(6)), decode(split, SIZE, "crop", crop_pct=0.9).images)


@pytest.mark.parametrize("name", [name for name, augment in AUGMENTATIONS.items() if augment.cuts])
def test_every_part_comes_from_the_generator_alone(split: Pictures, name: str) -> None:
    framed = decode_for_training(split, SIZE, name)
    state = torch.random.get_rng_state()
    first, again, other = (framed.augmented(range(6), name, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("suffix", ["tif", "png", "webp", "jpg"])
def test_turned_pictures_of_every_format_know_their_size(tmp_path: Path, monkeypatch, suffix: str) -> None:
    monkeypatch.setenv("VISUAL_PEFT_CACHE", str(tmp_path / "cache"))
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((120, 400, 3), np.uint8)).save(tmp_path / f"a.{suffix}", exif=exif)
    pictures = Pictures([tmp_path / f"a.{suffix}"], torch.zeros(1).long(), root=tmp_path)
    for limit in (2 << 30, 10):
        framed = decode_for_training(pictures, SIZE, "crop", ram_limit=limit)
        assert framed.own == ((400, 120),) and (framed.kept is None) == (limit == 10)
        assert framed.augmented([0], "crop", 0).shape == (1, 3, SIZE, SIZE)


def test_a_picture_of_too_many_pixels_says_so(tmp_path: Path, monkeypatch) -> None:
    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    pictures = Pictures([tmp_path / "a.png"], torch.zeros(1).long(), root=tmp_path)
    with pytest.raises(DataError, match="a.png: has more than 0 million pixels: save it smaller"):
        decode(pictures, 8)


def test_pictures_in_memory_of_any_sizes_are_cut(split: Pictures) -> None:
    frames = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in split.items[:3]]
    frames[1] = frames[1][:, :100, :90]
    pictures = framed(frames, Fit((SIZE, SIZE), "crop", 0.9), "crop_flip")
    assert pictures.augmented(range(3), "crop_flip", 0).shape == (3, 3, SIZE, SIZE)
    assert torch.equal(pictures.whole([0, 2]), decode(split, SIZE, "crop", crop_pct=0.9).images[[0, 2]])


def test_whole_pictures_that_were_decoded_are_those_of_evaluation() -> None:
    images = torch.randint(0, 256, (3, 3, 70, 90), dtype=torch.uint8)
    pictures = Pictures(images, torch.arange(3))
    got = decode_for_training(pictures, SIZE, "crop", mode="crop").whole(range(3))
    assert torch.equal(got, decode(pictures, SIZE, "crop").images)
