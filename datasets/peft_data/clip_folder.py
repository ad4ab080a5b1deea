"""Folders of clips: a folder a class, in `train/ val/ test/` or by itself; a clip is a video file or a folder of frames.

clips/train/wave/1.mp4  clips/train/run/2/0001.jpg …     or     clips/wave/1.mp4
"""

from __future__ import annotations

from pathlib import Path

from peft_data.base import ClassificationData
from peft_data.folder import holds_videos, read_folder
from peft_data.pictures import is_picture
from peft_data.video.decoding import is_video
from peft_data.video.options import with_sampling

NAMES = {"clips": "class folders of videos or of folders of frames: set data.root"}


def claims(path: Path) -> bool:
    """Whether class folders of it hold video files. Folders of frames look like pictures: they are opened as `clips`."""
    from peft_data import clip_lists

    return holds_videos(path) and not clip_lists.claims(path)


@with_sampling()
def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    val: float = 0.2,
    test: float = 0.2,
    directional: bool = False,
) -> tuple[ClassificationData, bool]:
    """The folder `root`. Classes are the names of the folders in order; what fixes no splits is split by the seed.

    Args:
        val: Part for choosing, where there are only class folders.
        test: Part for testing, where there are only class folders.
        directional: Whether a mirrored clip may belong to another class.

    Raises:
        DataError: fewer than two classes, or a class folder without clips.
    """
    return read_folder(name, root, seed, val, test, _clips_in), directional


def _clips_in(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if is_video(path) and path.is_file()]
    inner = [path for path in folder.rglob("*") if path.is_dir() and any(map(is_picture, path.iterdir()))]
    return found + inner
