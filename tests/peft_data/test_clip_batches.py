"""Clips as a data set: splits, batches, chance, a cache, what is broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError
from peft_data.augment import augmentation, flip
from peft_data.batches import generator_of
from peft_data.video.batches import ClipBatches, batches_of
from peft_data.video.clips import Clips, decode, strip
from peft_data.video.sampling import Sampling
from peft_data.world_motion import write_mp4
from PIL import Image

from tests.peft_data.test_clips import numbered


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """Six clips of odd sizes and 5 to 30 frames."""
    root = tmp_path_factory.mktemp("six")
    for number, length in enumerate((20, 30, 16, 5, 24, 18)):
        write_mp4(root / f"{number}.mp4", numbered(length, 32, 48 + 2 * number), keys=8)
    return Clips(sorted(root.glob("*.mp4")), torch.arange(6) % 2, root=root, sampling=Sampling(4, views=2, crops=3))


def test_small_sets_are_decoded_once_and_large_ones_on_demand(clips: Clips) -> None:
    kept, lazy = decode(clips, 16), decode(clips, 16, ram_limit=0, workers=2)
    assert kept.frames is not None and kept.frames.shape == (113, 3, 3, 16, 16) and lazy.frames is None
    assert kept.short == 0
    for shuffle in (True, False):
        one, other = (ClipBatches(each, 4, shuffle=shuffle, seed=3) for each in (kept, lazy))
        for _ in range(2):
            for mine, theirs in zip(one, other, strict=True):
                assert torch.equal(mine.images, theirs.images) and torch.equal(mine.indices, theirs.indices)


def test_shapes_and_chance_of_batches(clips: Clips) -> None:
    batches = batches_of(decode(clips, 16), 4, seed=1)
    first, second = list(batches), list(batches)
    assert first[0].images.shape == (4, 4, 3, 16, 16) and first[0].images.dtype == torch.uint8
    by_clip = [
        {int(i): clip for batch in epoch for i, clip in zip(batch.indices, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    assert any(not torch.equal(by_clip[0][i], by_clip[1][i]) for i in range(6))
    views = next(iter(batches_of(decode(clips, 16), 4, shuffle=False)))
    assert views.images.shape == (4, 6, 4, 3, 16, 16)  # two temporal views, three crops each


def test_goes_on_where_it_stopped(clips: Clips) -> None:
    decoded = decode(clips, 16)
    whole = [batch for _ in range(2) for batch in ClipBatches(decoded, 4, seed=2)]
    batches = ClipBatches(decoded, 4, seed=2)
    assert torch.equal(next(iter(batches)).images, whole[0].images)
    again = ClipBatches(decoded, 4, seed=2)
    again.load_state_dict(batches.state_dict())
    assert torch.equal(next(iter(again)).images, whole[1].images)


def test_three_crops_stand_along_the_longer_side(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.arange(0, 240, 4, np.uint8)[None, :, None], (20, 1, 3))).save(tmp_path / "1.png")
    clips = Clips([tmp_path], torch.zeros(1, dtype=torch.int64), sampling=Sampling(1, crops=3))
    frames = decode(clips, 20).frames
    assert frames is not None and frames[0, :, 0, 0, 0].tolist() == [0, 80, 160]


def test_broken_clips_are_reported_or_left_out(clips: Clips, tmp_path: Path) -> None:
    for path in clips.items:
        shutil.copy(path, tmp_path)
    (tmp_path / "6.mp4").write_text("no video", encoding="utf-8")
    bad = Clips(sorted(tmp_path.glob("*.mp4")), torch.arange(7) % 2, root=tmp_path, sampling=Sampling(8))
    with pytest.raises(DataError, match=r"(?s)1 of 7 clips cannot be read: .*on_bad_image='skip'.*6.mp4: is no video"):
        decode(bad, 16)
    left = decode(bad, 16, on_bad_image="skip")
    assert len(left) == 6 and left.skipped[0][0] == "6.mp4" and left.short == 1
    with pytest.raises(DataError, match="6.mp4 is no video .*: mend or remove it"):
        list(ClipBatches(decode(bad, 16, ram_limit=0), 7))
    batch = next(iter(ClipBatches(decode(bad, 16, ram_limit=0, on_bad_image="skip"), 7)))
    assert len(batch.images) == len(batch.labels) == 6 and 6 not in batch.indices


def test_cache_folder_keeps_decoded_clips(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decode(clips, 16, cache_dir=tmp_path)
    monkeypatch.setattr("peft_data.video.clips.read_clip", None)
    again = decode(clips, 16, cache_dir=tmp_path)
    assert torch.equal(first.frames, again.frames) and torch.equal(first.ends, again.ends)  # type: ignore[arg-type]


def test_strip_of_frames(clips: Clips) -> None:
    assert decode(clips, 16).preview(0).size == (70, 16)
    assert strip(torch.zeros(30, 3, 10, 12, dtype=torch.uint8)).size == (110, 10)


def test_frames_of_a_clip_are_changed_alike() -> None:
    clip = torch.randint(256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    same = clip[:, :1].expand(-1, 5, -1, -1, -1)
    for name in ("flip", "crop", "crop_flip", "randaug", "randaug_crop"):
        changed = augmentation(name)(same, generator_of(4))
        assert changed.shape == same.shape and (changed == changed[:, :1]).all(), name
    both = torch.stack([flip(clip[:, t], generator_of(4)) for t in range(3)], 1)
    assert torch.equal(augmentation("flip")(clip, generator_of(4)), both)
