"""Frames by their number from every container: seeking gives what decoding from the start gives."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from peft_data import DataError
from peft_data.video.decoding import open_clip
from PIL import Image

COUNT = 60
X264 = "libx264" in av.codecs_available
pytestmark = pytest.mark.skipif(not X264, reason="PyAV has no encoder of H.264 here")


def write(path: Path, codec: str = "libx264", kind: str | None = None) -> Path:
    """Noise that grows lighter by two levels a frame, with B-frames and a key frame every twelve."""
    chance = np.random.default_rng(0)
    with av.open(str(path), "w", format=kind) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, 2
        stream.codec_context.thread_count = 1
        if codec != "libx264":
            stream.bit_rate = 2_000_000
        for number in range(COUNT):
            pixels = (chance.integers(-3, 4, (64, 64, 3)) + 3 * number + 20).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def number_of(image: Image.Image) -> float:
    return (float(np.asarray(image).mean()) - 20) / 3


def plain(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [number_of(frame.to_image()) for frame in file.decode(video=0)]


KINDS = {
    "a.mp4": ("libx264", None), "a.ts": ("libx264", "mpegts"), "a.m2ts": ("libx264", "mpegts"), "a.MTS": ("libx264", "mpegts"),
    "a.mkv": ("libx264", None), "a.mpg": ("mpeg2video", None), "b.ts": ("mpeg2video", "mpegts"), "a.vob": ("mpeg2video", None),
    "a.m2v": ("mpeg2video", "mpeg2video"),
}  # fmt: skip


def same(path: Path, draws: int = 6) -> None:
    want = plain(path)
    chance = np.random.default_rng(1)
    with open_clip(path) as clip:
        assert clip.length == len(want)
        np.testing.assert_allclose([number_of(image) for image in clip.read(range(clip.length))], want, atol=0.4)
    for _ in range(draws):
        chosen = sorted(chance.choice(len(want), 5, replace=False).tolist())
        with open_clip(path) as clip:
            got = [number_of(image) for image in clip.read(chosen)]
            assert clip.substituted == 0
        np.testing.assert_allclose(got, [want[index] for index in chosen], atol=0.4)


@pytest.mark.parametrize("name", KINDS)
def test_seeking_in_every_container(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, *KINDS[name])
    assert len(plain(path)) == COUNT
    same(path)


@pytest.mark.parametrize("part", [3, 2])
def test_a_stream_that_begins_between_key_frames(tmp_path: Path, part: int) -> None:
    raw = write(tmp_path / "whole.ts", kind="mpegts").read_bytes()
    packets = len(raw) // 188
    (tmp_path / "cut.ts").write_bytes(raw[188 * (packets // part + 5) :])
    assert 5 < len(plain(tmp_path / "cut.ts")) < COUNT
    same(tmp_path / "cut.ts")


def test_a_frame_that_cannot_be_decoded_is_replaced_and_counted(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.mp4")
    with open_clip(path) as clip:
        at = clip._at
        monkeypatch.setattr(clip, "_at", lambda index: None if index in (20, 21) else at(index))
        got = [round(number_of(image)) for image in clip.read([10, 19, 20, 21, 22])]
        assert got == [10, 19, 19, 19, 22] and clip.substituted == 2
        with pytest.raises(DataError, match="no frame that can be decoded"):
            clip.read([20])


def matrices() -> list[tuple[int, int, int, int]]:
    return [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", matrices())
def test_turned_and_mirrored_clips_stand_as_they_are_shown(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:24, :32], colours[:24, 32:], colours[24:, :32], colours[24:, 32:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        255,
    )
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
        file.mux(stream.encode(None))
    raw = (tmp_path / "a.mp4").read_bytes()
    place = raw.index(b"tkhd") + 44  # version and flags, times, layer, volume, then the matrix, 16.16
    a, b, c, d = (value << 16 for value in matrix)
    (tmp_path / "b.mp4").write_bytes(
        raw[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + raw[place + 36 :]
    )
    a, b, c, d = matrix
    y, x = np.mgrid[:48, :64]
    across, down = a * x + c * y, b * x + d * y
    want = np.zeros((int(np.ptp(down)) + 1, int(np.ptp(across)) + 1, 3), int)
    want[down - down.min(), across - across.min()] = colours
    with open_clip(tmp_path / "b.mp4") as clip:
        got = np.asarray(clip.read([1])[0]).astype(int)
    assert got.shape == want.shape and np.abs(got - want).mean() < 5
