"""Pictures of every mode come out as a person sees them; resizing is Pillow's."""

import sys
import types

import numpy as np
import pytest
import torch
from peft_data import DataError, Pictures
from peft_data.cache import decode
from peft_data.pictures import UNREADABLE, Fit, is_picture, own_size, read_picture
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.v2.functional import resize

from tests.peft_data.drawn import noise


def read(tmp_path, image: Image.Image, name: str = "a.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    picture = read_picture(tmp_path / name)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_grey_and_one_bit(tmp_path) -> None:
    grey = noise().convert("L")
    assert np.array_equal(read(tmp_path, grey), np.asarray(grey)[..., None].repeat(3, 2))
    assert set(np.unique(read(tmp_path, grey.convert("1")))) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix) -> None:
    values = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    got = read(tmp_path, Image.fromarray(values), f"a.{suffix}")
    assert np.array_equal(got[..., 0], np.rint(values / 257)) and got.max() == 255
    dark = read(tmp_path, Image.fromarray(values // 300), f"b.{suffix}")
    assert dark.max() == 1


def test_wide_and_real_numbers(tmp_path) -> None:
    ramp = np.linspace(0, 1, 192).reshape(12, 16)
    want = np.rint(ramp * 255)
    assert np.array_equal(read(tmp_path, Image.fromarray(ramp.astype(np.float32)), "f.tif")[..., 0], want)
    for top in (255, 65535, 2**31 - 1):
        got = read(tmp_path, Image.fromarray((ramp * top).astype(np.int32)), "i.tif")[..., 0]
        assert np.abs(got - want * (0.5 if top > 65535 else 1)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(tmp_path, mode) -> None:
    image = noise().convert(mode)
    alpha = Image.fromarray(np.repeat([[0, 255]], 12, 0).repeat(8, 1).astype(np.uint8))
    image.putalpha(alpha)
    got = read(tmp_path, image)
    assert (got[:, :8] == 255).all()
    assert np.array_equal(got[:, 8:], np.asarray(noise().convert(mode).convert("RGB"))[:, 8:])


def test_palettes(tmp_path) -> None:
    plain = noise().convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(read(tmp_path, plain), np.asarray(plain.convert("RGB")))
    clear = int(np.asarray(plain)[0, 0])
    for options in ({"transparency": clear}, {"transparency": bytes(0 if i == clear else 255 for i in range(256))}):
        got, opaque = read(tmp_path, plain, **options), np.asarray(plain) != clear
        assert (got[~opaque] == 255).all()
        assert np.array_equal(got[opaque], np.asarray(plain.convert("RGB"))[opaque])
    assert read(tmp_path, plain, "a.gif").shape == (12, 16, 3)


def test_a_transparent_colour_of_an_rgb_picture(tmp_path) -> None:
    image = noise()
    image.putpixel((0, 0), (1, 2, 3))
    assert read(tmp_path, image, transparency=(1, 2, 3))[0, 0].tolist() == [255, 255, 255]


def test_cmyk(tmp_path) -> None:
    image = noise(64, 64)
    got = read(tmp_path, image.convert("CMYK"), "a.jpg", quality=95)
    assert np.abs(got.astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    got = read(tmp_path, noise(), "a.png", exif=exif)
    upright = np.asarray(noise())
    want = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1), 7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright),
    }[turn]  # fmt: skip
    assert np.array_equal(got, want)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_matter(tmp_path) -> None:
    assert read(tmp_path, noise(), "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12").shape == (12, 16, 3)


def test_what_cannot_be_read(tmp_path) -> None:
    noise(64, 64).save(tmp_path / "a.jpg")
    noise(64, 64).save(tmp_path / "a.png")
    for name in ("a.jpg", "a.png"):
        whole = (tmp_path / name).read_bytes()
        for part in (whole[: len(whole) // 2], whole[:20], b"", b"hello"):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(UNREADABLE):
                read_picture(tmp_path / name)


def test_what_counts_as_a_picture(tmp_path) -> None:
    assert all(is_picture(tmp_path / name) for name in ("a.jpg", "a.JPEG", "b.c.webp"))
    assert not any(is_picture(tmp_path / name) for name in ("a.txt", ".a.jpg", "jpg", "._a.png"))


@pytest.mark.parametrize("shape", [(100, 80), (80, 100), (37, 211), (224, 224), (300, 301)])
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 0.875), (48, 0.9), (60, 1.0)])
def test_resizing_is_that_of_the_usual_transforms(shape, size, crop_pct) -> None:
    image = noise(*shape, seed=3)
    squash = Resize((size, size), InterpolationMode.BICUBIC)(image)
    assert np.array_equal(Fit((size, size)).picture(image), np.asarray(squash).transpose(2, 0, 1))
    usual = Compose([Resize(int(size / crop_pct), InterpolationMode.BICUBIC), CenterCrop(size)])(image)
    crop = Fit((size, size), "crop", crop_pct)
    assert np.array_equal(crop.picture(image), np.asarray(usual).transpose(2, 0, 1))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    assert (crop.tensor(pixels).float() - torch.from_numpy(crop.picture(image).copy())).abs().max() <= 2


def test_decoded_pictures_are_resized_only_if_they_must() -> None:
    images = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert Fit((8, 8)).tensor(images).data_ptr() == images.data_ptr()
    want = resize(images, [12, 10], InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(Fit((12, 10)).tensor(images), want)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "squsah"}, "did you mean 'squash'"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"size": (0, 8)}, "at least 1"),
        ({"crop_pct": 1.5}, "crop_pct"),
    ],
)
def test_wrong_arguments(options, says) -> None:
    with pytest.raises(DataError, match=says):
        Fit(**{"size": (8, 8), **options})


def test_heic_names_what_reads_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert is_picture(tmp_path / "a.HEIC") and is_picture(tmp_path / "b.heif")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        read_picture(tmp_path / "a.HEIC")
    with pytest.raises(DataError, match=r"a.HEIC: is HEIC, which needs pillow-heif: pip install pillow-heif"):
        decode(Pictures([tmp_path / "a.HEIC"], torch.zeros(1).long(), root=tmp_path), 8)


def test_heic_is_opened_where_its_reader_is_installed(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    opened, told = Image.open, []

    def register() -> None:
        told.append(1)
        monkeypatch.setattr(Image, "open", lambda source: Image.new("RGB", (5, 7)))

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert read_picture(tmp_path / "a.HEIC").size == (5, 7) and told
    monkeypatch.setattr(Image, "open", opened)


def test_a_picture_may_be_decoded_smaller_but_not_below(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    noise(200, 320).save(tmp_path / "a.jpg", exif=exif)
    assert own_size(tmp_path / "a.jpg") == (320, 200) and read_picture(tmp_path / "a.jpg").size == (200, 320)
    assert read_picture(tmp_path / "a.jpg", (80, 50)).size == (50, 80)
    assert read_picture(tmp_path / "a.jpg", (81, 50)).size == (100, 160)
    assert read_picture(tmp_path / "a.jpg", (400, 300)).size == (200, 320)
