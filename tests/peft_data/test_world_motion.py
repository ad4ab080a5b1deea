"""The drawn clips: real files, and classes that no frame gives away."""

from __future__ import annotations

import pytest
import torch
from peft_data import DataError, open_data
from peft_data.base import ClassificationData
from peft_data.video.clips import decode
from peft_data.video.decoding import open_clip
from peft_data.world import motion as drawn
from peft_data.world.draw import Draw


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> ClassificationData:
    import peft_data.world_motion as world_motion

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(world_motion, "SPLITS", {"train": 12, "val": 4, "test": 8})
        return open_data("world/motion/direction")


def test_drawn_clips_are_mp4_files_in_class_folders(motion: ClassificationData) -> None:
    assert (len(motion.train), len(motion.val), len(motion.test)) == (12, 4, 8)
    assert motion.class_names == ("right", "down", "left", "up") and motion.recipe == "motion"
    assert motion.train.directional and len(motion.train + motion.val) == 16
    path = motion.train.items[0]
    assert path.suffix == ".mp4" and path.parent.name == motion.class_names[int(motion.train.labels[0])]
    with open_clip(path) as clip:
        assert clip.length == 16 and clip.read([0])[0].size == (40, 40)


def test_direction_is_what_its_name_says(motion: ClassificationData) -> None:
    decoded = decode(motion.test, 40)
    for row in range(len(decoded)):
        frames = decoded.take(row, torch.arange)[:, 0].float()
        background = frames.median(0).values
        moved = (frames - background).abs().sum(1)
        ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
        places = torch.stack((xs, ys)) * moved[:, None]
        centre = places.flatten(2).sum(2) / moved.flatten(1).sum(1, keepdim=True)
        dx, dy = (centre[-4:].mean(0) - centre[:4].mean(0)).tolist()
        way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        assert way == motion.class_names[int(decoded.labels[row])]


def test_unknown_task_and_size() -> None:
    with pytest.raises(DataError, match="did you mean 'world/motion/direction'"):
        open_data("world/motion/directoin")
    with pytest.raises(DataError, match="an even size of 16 or more"):
        open_data("world/motion/order", size=41)


def test_axis_shows_in_no_frame_but_in_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        drawn, "filmed", lambda at, size: torch.stack([torch.cat((s.x, s.y), 1) for s in map(at, times)], 1)
    )
    times = torch.linspace(0, 1, 16).tolist()
    places, labels = drawn.axis(Draw("axis"), 6000, 40)
    covered = places.amax(1) - places.amin(1)
    assert places.abs().max() <= 0.85
    for label, (moves_x, moves_y) in enumerate([(False, False), (True, False), (False, True)]):
        of_class = covered[labels == label]
        assert ((of_class[:, 0] >= 0.6) == moves_x).all() and ((of_class[:, 1] >= 0.6) == moves_y).all()
        assert (of_class > 0).sum(0).tolist() == [moves_x * len(of_class), moves_y * len(of_class)]
    shares = torch.linspace(0.1, 0.9, 9)
    all_of = torch.stack([places[labels == label].flatten(0, 1)[:30000].quantile(shares, 0) for label in range(3)])
    assert (all_of - all_of.mean(0)).abs().max() < 0.03
