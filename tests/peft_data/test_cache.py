"""Decoding once: the same pictures from memory and from the file, all bad ones in one error, nothing half-written."""

import errno
import os
import resource
import shutil
from collections import namedtuple
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError, Pictures, cache_file
from peft_data.base import no_pictures
from peft_data.cache import CHUNK, check_decoding, decode
from peft_data.pictures import read_picture
from peft_data.reach import cache_root, deadline, unreachable
from PIL import Image

from tests.peft_data.drawn import picture


@pytest.fixture
def split(tmp_path) -> Pictures:
    count = CHUNK + 6
    paths = [picture(tmp_path / f"d/{i}.png", seed=i) for i in range(count)]
    return Pictures(paths, torch.arange(count), root=tmp_path / "d")


def test_pictures_are_decoded_in_order(split) -> None:
    decoded = decode(split, 8)
    assert decoded.images.shape == (len(split), 3, 8, 8) and decoded.images.dtype == torch.uint8
    assert torch.equal(decoded.labels, split.labels) and decoded.names[3] == "3.png" and decoded.skipped == ()
    want = Image.open(split.items[69]).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(decoded.images[69].permute(1, 2, 0), want)
    assert torch.equal(decode(split, 8, workers=1).images, decoded.images)
    assert decode(split, (4, 10)).images.shape[2:] == (4, 10)
    assert len(decode(no_pictures(), 8)) == 0


def test_memory_and_file_are_the_same(split, tmp_path) -> None:
    plain = decode(split, 8)
    kept = decode(split, 8, cache_dir=tmp_path / "c")
    mapped = decode(split, 8, cache_dir=tmp_path / "c", ram_limit=0)
    assert torch.equal(plain.images, kept.images) and torch.equal(plain.images, mapped.images)
    assert mapped.names == plain.names and torch.equal(mapped.labels, plain.labels)
    assert len(list((tmp_path / "c").glob("*.u8"))) == 1
    mapped.images[0] = 0  # private to this process
    assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, plain.images)


def test_the_second_time_nothing_is_decoded(split, tmp_path, monkeypatch) -> None:
    first = decode(split, 8, cache_dir=tmp_path / "c")
    monkeypatch.setattr("peft_data.cache.read_picture", None)
    assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, first.images)


def test_a_changed_picture_or_size_is_decoded_again(split, tmp_path) -> None:
    first = decode(split, 8, cache_dir=tmp_path / "c")
    picture(split.items[5], seed=99)
    again = decode(split, 8, cache_dir=tmp_path / "c")
    assert not torch.equal(again.images[5], first.images[5]) and torch.equal(again.images[6:], first.images[6:])
    assert decode(split, 8, "crop", cache_dir=tmp_path / "c").images.shape == again.images.shape
    assert decode(split, 9, cache_dir=tmp_path / "c").images.shape[-1] == 9
    assert decode(split.subset([2, 1]), 8, cache_dir=tmp_path / "c").labels.tolist() == [2, 1]


def test_big_sets_go_to_the_users_cache_folder(split, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    mapped = decode(split, 8, ram_limit=100)
    assert len(list((tmp_path / "home/visual-peft/pictures").glob("*.u8"))) == 1
    assert torch.equal(mapped.images, decode(split, 8).images)


@pytest.mark.parametrize("cache", [None, "c"])
def test_all_bad_pictures_are_named(split, tmp_path, cache) -> None:
    cache_dir = cache and tmp_path / cache
    split.items[3].write_bytes(b"no picture")
    split.items[5].write_bytes(b"")
    split.items[66].write_bytes(split.items[66].read_bytes()[:60])
    split.items[68].unlink()
    want = (
        r"4 of 70 pictures cannot be read.*skip.*\n  3\.png: is no picture\n  5\.png: is empty\n  66\.png: .*\n"
        r"  68\.png: is missing$"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=want):
            decode(split, 8, cache_dir=cache_dir)
    decoded = decode(split, 8, on_bad_image="skip", cache_dir=cache_dir)
    assert len(decoded) == len(decoded.images) == 66
    assert [name for name, _ in decoded.skipped] == ["3.png", "5.png", "66.png", "68.png"]
    assert decoded.labels.tolist() == [i for i in range(70) if i not in (3, 5, 66, 68)]
    want_image = np.asarray(Image.open(split.items[69]).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(decoded.images[-1].permute(1, 2, 0), want_image)


def test_many_bad_pictures_are_counted(split) -> None:
    for path in split.items:
        path.write_bytes(b"")
    for how in ("raise", "skip"):
        with pytest.raises(DataError, match=r"70 of 70 pictures cannot(.*\n)*.*… and 20 more$") as caught:
            decode(split, 8, on_bad_image=how)
        assert str(caught.value).count("\n") == 51
    with pytest.raises(DataError, match="must be 'raise' or 'skip', not 'ignore'"):
        decode(split, 8, on_bad_image="ignore")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(split, tmp_path, monkeypatch, interruption) -> None:
    def read(path: Path) -> Image.Image:
        if path == split.items[CHUNK + 1]:
            raise interruption
        return Image.open(path)

    monkeypatch.setattr("peft_data.cache.read_picture", read)
    with pytest.raises(interruption):
        decode(split, 8, cache_dir=tmp_path / "c")
    assert not [path for path in (tmp_path / "c").iterdir() if path.suffix != ".lock"]
    monkeypatch.undo()
    assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, decode(split, 8).images)


def test_a_killed_or_broken_file_is_made_again(split, tmp_path) -> None:
    first = decode(split, 8, cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").glob("*.u8")
    path.with_suffix(".part").write_bytes(b"left by a killed process")
    whole = path.read_bytes()
    for broken in (whole[:1000], whole[1000:], b"", whole + b"1"):
        path.write_bytes(broken)
        assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, first.images)
        assert path.read_bytes() == whole and not path.with_suffix(".part").exists()


def test_a_full_disk_keeps_the_old_file(split, tmp_path, monkeypatch) -> None:
    decode(split, 8, cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").glob("*.u8")
    old = path.read_bytes()
    usage = namedtuple("usage", "free")(1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(DataError, match="need 0.0 MiB but .* has 0.0 MiB free: make room"):
            decode(split, 9, cache_dir=tmp_path / "c")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # the write itself fails midway
    try:
        with pytest.raises(DataError, match=f"cannot be kept in .*{os.strerror(errno.EFBIG)}.*cache_dir"):
            decode(split, 9, cache_dir=tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old and not list((tmp_path / "c").glob("*.part"))


def test_a_folder_that_cannot_be_made(split, tmp_path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be kept in .*cache_dir"):
        decode(split, 8, cache_dir=tmp_path / "file/c")


def test_progress_is_told(split) -> None:
    told = []
    decode(split, 8, progress=lambda done, of: told.append((done, of)))
    assert told == [(CHUNK, 70), (70, 70)]


def test_pictures_from_a_sequence(tmp_path) -> None:
    class Drawn(Sequence):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Image.Image:
            if i == 1:
                raise ValueError("the brush broke")
            return Image.new("L", (9, 9), i)

    items = Drawn()
    decoded = decode(Pictures(items, torch.arange(3), split="made"), 8, on_bad_image="skip", ram_limit=0)
    assert decoded.names == ("made/000000", "made/000002") and decoded.images[:, 0, 0, 0].tolist() == [0, 2]
    assert decoded.skipped == (("made/000001", "the brush broke"),)
    items.fingerprint = "drawn 1"
    kept = decode(Pictures(items, torch.arange(3)), 8, on_bad_image="skip", cache_dir=tmp_path)
    assert torch.equal(kept.images, decoded.images) and len(list(tmp_path.glob("*.u8"))) == 1


def test_decoded_pictures_pass_through() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    decoded = decode(Pictures(images, torch.arange(5), split="x"), 8)
    assert decoded.images.data_ptr() == images.data_ptr() and decoded.names[4] == "x/000004"
    assert decode(Pictures(images, torch.arange(5)), 16).images.shape == (5, 3, 16, 16)


def test_keys_tell_pictures_apart(split, tmp_path) -> None:
    from peft_data.pictures import Fit

    keys = [cache_file.cache_key(split, Fit(size, mode)) for size in ((8, 8), (8, 9)) for mode in ("squash", "crop")]
    keys.append(cache_file.cache_key(split.subset([1, 0]), Fit((8, 8))))
    assert len(set(keys)) == 5 and keys[0] == cache_file.cache_key(split, Fit((8, 8)))


def test_a_whole_file_serves_where_nothing_can_be_written(split, tmp_path, monkeypatch) -> None:
    first = decode(split, 8, cache_dir=tmp_path / "c")

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(cache_file, "FileLock", refused)
    assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, first.images)
    with pytest.raises(
        DataError, match=f"cannot be kept in .*{os.strerror(errno.EACCES)}.*name another with cache_dir"
    ):
        decode(split, 9, cache_dir=tmp_path / "c")


@pytest.mark.parametrize(
    "notes", [b"3", b"[]", b"{}", b'{"bytes": 13440}', b'{"bytes": 13440, "left_out": 3}', b"[" * 50_000]
)
def test_a_file_with_other_notes_is_made_again(split, tmp_path, notes) -> None:
    first = decode(split, 8, cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").glob("*.u8")
    path.write_bytes(bytes(first.images.numel()) + notes + len(notes).to_bytes(8, "little"))
    assert torch.equal(decode(split, 8, cache_dir=tmp_path / "c").images, first.images)


def test_processes_that_want_the_same_decode_it_once(split, tmp_path, monkeypatch) -> None:
    read, count = read_picture, []
    monkeypatch.setattr("peft_data.cache.read_picture", lambda source: (count.append(1), read(source))[1])
    with ThreadPoolExecutor(4) as pool:  # each takes the lock by a handle of its own, as a process does
        found = list(pool.map(lambda _: decode(split, 8, cache_dir=tmp_path / "c").images, range(4)))
    assert all(torch.equal(images, found[0]) for images in found) and len(count) == len(split)


@pytest.mark.parametrize(
    ("option", "says"),
    [({"workers": -1}, "workers must be 0"), ({"workers": 10**6}, "workers must be 0"), ({"workers": True}, "workers must be 0"),
     ({"on_bad_image": "x"}, "must be 'raise' or 'skip'"), ({"cache_dir": __file__}, "which is a file")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_before_anything_is_read(option, says) -> None:
    with pytest.raises(DataError, match=says):
        check_decoding(**option)


def test_where_data_is_kept_and_how_long_a_hub_may_take(monkeypatch) -> None:
    for name in ("VISUAL_PEFT_CACHE", "XDG_CACHE_HOME", "VISUAL_PEFT_WAIT"):
        monkeypatch.delenv(name, raising=False)
    assert cache_root() == Path.home() / ".cache/visual-peft" and deadline() == 10
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/visual-peft")
    monkeypatch.setenv("VISUAL_PEFT_CACHE", "~/y")
    assert cache_root() == Path.home() / "y" and cache_file.default_folder() == Path.home() / "y/pictures"
    for wrong in ("0", "-3", "soon", "inf", "nan"):
        monkeypatch.setenv("VISUAL_PEFT_WAIT", wrong)
        with pytest.raises(DataError, match="VISUAL_PEFT_WAIT must be seconds above 0"):
            deadline()
    monkeypatch.setenv("VISUAL_PEFT_WAIT", "0.2")
    assert unreachable("http://192.0.2.1/") and unreachable("no address")


def test_a_split_has_a_fingerprint(split) -> None:
    first = cache_file.fingerprint(split)
    assert first and first == cache_file.fingerprint(split) != cache_file.fingerprint(split.subset([0, 1]))
    assert first != cache_file.fingerprint(Pictures(split.items, split.labels.flip(0), root=split.root))
    picture(split.items[5], seed=77)
    os.utime(split.items[5], (1, 1))
    assert first != cache_file.fingerprint(split)
    tensor = Pictures(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2))
    assert cache_file.fingerprint(tensor) != cache_file.fingerprint(Pictures(tensor.items + 1, tensor.labels))
