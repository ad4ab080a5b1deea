"""Clips: which frames, how they are decoded, in which batches."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError
from peft_data.batches import generator_of
from peft_data.video.batches import batches_of
from peft_data.video.clips import Clips
from peft_data.video.decoding import decoder_of, open_clip
from peft_data.video.frames import FramedClips, decode_clips_for_training
from peft_data.video.options import sampling_options
from peft_data.video.sampling import Sampling
from peft_data.world_motion import write_mp4
from PIL import Image

# ---- sampling ------------------------------------------------------------------------------------------------------


def test_dense_views_are_windows_evenly_spaced() -> None:
    # VideoMAE on Kinetics: 16 frames, every 4th, of a clip of 300; windows of 64 start at 0, 59, 118, 177, 236
    rows = Sampling(16, "dense", 4, views=5).test(300)
    assert rows[:, 0].tolist() == [0, 59, 118, 177, 236] and rows[1].tolist() == list(range(59, 123, 4))
    # AIM: 8 frames, every 16th; a single view takes the middle of 300 − 128
    assert Sampling(8, "dense", 16).test(300)[0].tolist() == list(range(86, 214, 16))


def test_dense_window_is_drawn_in_training() -> None:
    sampling = Sampling(8, "dense", 16)
    starts = {int(sampling.train(300, generator_of(seed))[0]) for seed in range(300)}
    assert min(starts) < 10 and max(starts) > 165 and max(starts) <= 172
    assert (sampling.train(300, generator_of(1)).diff() == 16).all()


def test_uniform_takes_a_frame_from_each_segment() -> None:
    # TSN: 8 segments of 5 frames; the centre at test
    assert Sampling(8).test(40)[0].tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    # two views, as VideoMAE has on SSv2: a quarter and three quarters into the segment
    assert Sampling(8, views=2).test(40).tolist() == [
        [1, 6, 11, 16, 21, 26, 31, 36],
        [3, 8, 13, 18, 23, 28, 33, 38],
    ]
    for seed in range(50):
        drawn = Sampling(8).train(40, generator_of(seed))
        assert (drawn // 5).tolist() == list(range(8))
    assert len({tuple(Sampling(8).train(40, generator_of(seed)).tolist()) for seed in range(20)}) == 20


def test_short_clips_repeat_frames() -> None:
    assert Sampling(8).test(3)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert Sampling(4, "dense", 4).test(6)[0].tolist() == [0, 4, 5, 5]
    assert Sampling(4, "dense", 4).train(1, generator_of(0)).tolist() == [0, 0, 0, 0]
    assert Sampling(8).span == 8 and Sampling(8, "dense", 4).span == 29


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"views": 0}, {"crops": 2}, {"kind": "unifrom"}])
def test_wrong_sampling(wrong: dict) -> None:
    with pytest.raises(DataError, match="1 or more|did you mean 'uniform'"):
        Sampling(**wrong)


# ---- decoding ------------------------------------------------------------------------------------------------------


def numbered(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Frames whose grey tells their number."""
    grey = torch.linspace(10, 245, count).to(torch.uint8)
    return grey[:, None, None, None].expand(count, 3, height, width).contiguous()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module", params=["h264.mp4", "mpeg4.avi", "vp9.webm", "h264.mkv"])
def video(folder: Path, request: pytest.FixtureRequest) -> Path:
    codec = {"h264": "libx264", "mpeg4": "mpeg4", "vp9": "libvpx-vp9"}[request.param.partition(".")[0]]
    path = folder / request.param
    write_mp4(path, numbered(40), keys=12, codec=codec)
    return path


def test_seeking_gives_what_decoding_all_gives(video: Path) -> None:
    with open_clip(video) as clip:
        assert clip.length == 40
        whole = [np.asarray(image) for image in clip.read(range(40))]
    assert [image.mean() for image in whole] == sorted(image.mean() for image in whole)
    for wanted in ([0], [39], [13], [5, 37], [30, 2, 30, 17], [11, 12, 13, 25], [39, 0, 38]):
        with open_clip(video) as clip:
            for image, index in zip(clip.read(wanted), wanted, strict=True):
                assert np.array_equal(np.asarray(image), whole[index]), (wanted, index)


def decoder() -> str:
    try:
        decoder_of("torchcodec")
    except DataError as error:
        pytest.skip(str(error))
    return "torchcodec"


def test_torchcodec_gives_the_frames_that_pyav_gives(video: Path, folder: Path) -> None:
    wanted = [30, 2, 30, 17, 39]
    with open_clip(video) as clip, open_clip(video, decoder()) as other:
        assert clip.length == other.length
        for one, two in zip(clip.read(wanted), other.read(wanted), strict=True):
            assert (
                np.abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 3
            )  # each converts colours in its own way
    (folder / "text.mp4").write_text("not a video, " * 50, encoding="utf-8")
    with pytest.raises(DataError, match=r"is no video that can be read \(Could not open"):
        open_clip(folder / "text.mp4", "torchcodec")


def test_a_decoder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DataError, match="decoder torchcodec cannot be used here: pip install torchcodec"):
        sampling_options(decoder="torchcodec")
    with pytest.raises(DataError, match="no decoder 'pyva' .*pyav"):
        sampling_options(decoder="pyva")  # pyright: ignore[reportArgumentType]


def test_variable_frame_rate_counts_frames_as_they_are_shown(folder: Path) -> None:
    import av

    path = folder / "variable.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", 6
        times = (0, 1, 2, 9, 10, 30, 31, 32, 60, 61, 90, 120)
        for frame, time in zip(numbered(12), times, strict=True):
            shown = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")
            shown.pts = time
            file.mux(stream.encode(shown))
        file.mux(stream.encode())
    with open_clip(path) as clip:
        assert clip.length == 12
        levels = [np.asarray(image).mean() for image in clip.read([0, 4, 8, 11])]
    for level, number in zip(levels, (0, 4, 8, 11), strict=True):
        assert abs(level - float(numbered(12)[number].float().mean())) < 3


def test_folder_of_frames_in_the_order_of_their_numbers(folder: Path) -> None:
    path = folder / "frames"
    path.mkdir()
    for number in range(1, 13):
        Image.new("RGB", (9, 7), (number * 10, 0, 0)).save(path / f"img_{number}.png")
    with open_clip(path) as clip:
        assert clip.length == 12
        assert [image.getpixel((0, 0))[0] for image in clip.read([11, 1, 1])] == [120, 20, 20]


def test_what_is_no_clip(folder: Path) -> None:
    import av

    (folder / "words.mp4").write_text("not a video, " * 50, encoding="utf-8")
    (folder / "nothing.mp4").touch()
    (folder / "none").mkdir()
    with av.open(str(folder / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    whole = folder / "h264.mp4"
    write_mp4(whole, numbered(40))
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[:600])
    reasons = {
        "words.mp4": "is no video that can be read",
        "nothing.mp4": "is empty",
        "none": "has no frames",
        "sound.mp4": "has no picture, only sound",
        "gone.mp4": "is missing",
        "cut.mp4": "is no video|is broken",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            open_clip(folder / name)


# ---- windows of other programs, and parts of frames ----------------------------------------------------------------


def test_windows_of_mmaction() -> None:
    sampling = Sampling(8, "dense", 16, views=3, windows="mmaction")
    assert sampling.test(300)[:, 0].tolist() == [28, 86, 144]
    assert Sampling(4, "dense", 16, windows="mmaction").test(50)[0].tolist() == [0, 16, 32, 48]
    assert Sampling(8, "dense", 8, windows="mmaction").test(20)[0].tolist() == [
        0,
        8,
        16,
        4,
        12,
        0,
        8,
        16,
    ]  # begins anew
    starts = {int(sampling.train(300, generator_of(seed))[0]) for seed in range(400)}
    assert min(starts) < 8 and 164 < max(starts) <= 172


def test_windows_of_st_adapter() -> None:
    sampling = Sampling(8, "dense", 16, views=3, windows="st_adapter")
    assert sampling.test(300)[:, 0].tolist() == [0, 94, 187]
    starts = {int(sampling.train(300, generator_of(seed))[0]) for seed in range(400)}
    assert min(starts) < 8 and 178 < max(starts) <= 187
    assert sampling.test(50)[0].tolist() == [0, 16, 32, 48, 49, 49, 49, 49]
    assert sampling.train(50, generator_of(0)).tolist() == [0, 16, 32, 48, 48, 48, 48, 48]


@pytest.mark.parametrize("windows", ["mmaction", "st_adapter"])
def test_segments_of_the_authors_of_both(windows: str) -> None:
    sampling = Sampling(8, windows=windows)
    assert sampling.test(8)[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 6]
    assert sampling.test(40)[0].tolist() == [2, 7, 12, 17, 22, 26, 31, 36]
    taken = torch.stack([sampling.train(40, generator_of(seed)) for seed in range(400)])
    assert taken.amin(0).tolist() == [0, 5, 10, 15, 20, 24, 29, 34] and taken.amax(0).tolist() == [
        5,
        10,
        15,
        20,
        24,
        29,
        34,
        39,
    ]
    with pytest.raises(DataError, match="has one view with the windows"):
        Sampling(8, views=2, windows=windows)
    with pytest.raises(DataError, match="no windows 'slowfst' .did you mean 'slowfast'"):
        Sampling(windows="slowfst")


@pytest.mark.parametrize("limit", [2 << 30, 0])
def test_parts_of_clips_come_from_their_own_frames(tmp_path: Path, limit: int) -> None:
    """Green says the column of a frame 96 wide, red its number: parts of a clip are one place in all frames."""
    paths = []
    for number in range(2):
        frames = torch.zeros(12, 3, 64, 96, dtype=torch.uint8)
        frames[:, 1] = torch.arange(96, dtype=torch.uint8) * 2
        frames[:, 0] = torch.arange(12, dtype=torch.uint8)[:, None, None] * 20
        folder = tmp_path / f"c/{number}"
        folder.mkdir(parents=True)
        for index, frame in enumerate(frames):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
        paths.append(folder)
    clips = Clips(paths, torch.arange(2), root=tmp_path, sampling=Sampling(4))
    framed = decode_clips_for_training(clips, 32, "crop", ram_limit=limit)
    assert isinstance(framed, FramedClips) and (framed.kept is None) == (limit == 0)
    assert framed.remaining("crop") == "none" and framed.short == 0 and len(framed) == 2
    batches = batches_of(framed, 2, seed=1)
    seen = []
    for _ in range(6):
        for batch in batches:
            assert batch.images.shape == (2, 4, 3, 32, 32)
            green, red = batch.images[:, :, 1].float(), batch.images[:, :, 0].float().mean((-1, -2))
            assert (green - green[:, :1]).abs().max() <= 2  # the same part of every frame
            assert (red.diff(dim=1) > 0).all()
            seen += [green[..., 0].min().item(), green[..., -1].max().item()]
    assert min(seen) < 20 and max(seen) > 170  # the margins, which a centre square of 64 does not have
    again = batches_of(decode_clips_for_training(clips, 32, "crop", ram_limit=0), 2, seed=1)
    for got, want in zip(again, batches_of(framed, 2, seed=1), strict=True):
        assert torch.equal(got.images, want.images)
    assert not isinstance(decode_clips_for_training(clips, 32, "flip"), FramedClips)


def test_broken_clips_that_parts_are_cut_from(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "b").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "b/0.png")
    clips = Clips([tmp_path / "a.mp4", tmp_path / "b"], torch.arange(2), root=tmp_path, sampling=Sampling(2))
    with pytest.raises(DataError, match=r"1 of 2 clips cannot be read.*\n  a.mp4: is no video"):
        decode_clips_for_training(clips, 32, "crop")
    assert [name for name, _ in decode_clips_for_training(clips, 32, "crop", on_bad_image="skip").skipped] == ["a.mp4"]
    asked = decode_clips_for_training(clips, 32, "crop", on_bad_image="skip", ram_limit=0)
    assert [len(batch.labels) for batch in batches_of(asked, 2)] == [1] and "is no video" in asked.broken["a.mp4"]
