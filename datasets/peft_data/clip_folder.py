"""Folders of clips: a folder a class, in `train/ val/ test/` or by itself; a clip is a video file or a folder of frames.

clips/train/wave/1.mp4  clips/train/run/2/0001.jpg …     or     clips/wave/1.mp4
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_data import clip_lists
from peft_data.base import ClassificationData
from peft_data.folder import holds_videos, read_folder
from peft_data.options import takes
from peft_data.pictures import is_picture
from peft_data.video.decoding import is_video
from peft_data.video.options import classes_of_clips, with_sampling
from peft_data.walk import LeftOut, files_in, walk

NAMES = {"clips": "class folders of videos or of folders of frames: set data.root"}


def claims(path: Path) -> bool:
    """Whether class folders of it hold video files. Folders of frames look like pictures: they are opened as `clips`."""
    return holds_videos(path) and not clip_lists.claims(path)


@with_sampling()
@takes(classes_of_clips)
def load(name: str, root: str | None, seed: int, **common: Any) -> tuple[ClassificationData, bool]:
    """The folder `root`. Classes are the names of the folders in order; what fixes no splits is split by the seed.

    Raises:
        DataError: fewer than two classes, or a class folder without clips.
    """
    shares = common["val"], common["test"]
    return read_folder(name, root, seed, *shares, _of_class, "clips"), common["directional"]


def clips_in(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The clips of a folder, at any depth, in order: video files, and folders that hold pictures and no video (`folder`
    itself, too)."""

    def holds_frames(inside: Path, names: list[str]) -> bool:
        return any(is_picture(inside / name) for name in names) and not any(is_video(inside / name) for name in names)

    frames = {inside for inside, names in walk(folder) if holds_frames(inside, names)}
    videos = files_in(folder, lambda path: is_video(path) or path.parent in frames and is_picture(path), left_out)
    return sorted([*frames, *(path for path in videos if is_video(path))])


def _of_class(folder: Path, left_out: LeftOut) -> list[Path]:
    return [path for path in clips_in(folder, left_out) if path != folder]
