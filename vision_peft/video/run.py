"""A finished run on clips in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft_data.clip_folder import clips_in
from peft_data.errors import DataError
from peft_data.video.clips import ClipFit, read_frames, views_of
from peft_data.video.sampling import Sampling
from torch import Tensor, nn

from peft_core import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.use import Run, search
from vision_peft.video.classified import as_video


@dataclass(frozen=True)
class VideoRun(Run):
    """`Run` on clips: `predict` takes video files, folders of frames, or uint8 tensors `L 3 h w` of all frames."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(**self.card["clips"])

    def pixels(self, image: Any) -> Tensor:
        """A clip's views at the model's size, uint8 `V T 3 H W`; views are given back as they are.

        Raises:
            PeftError: there is no such file or it is no video that can be read.
        """
        sampling, fit = self.sampling, ClipFit(self.fit, self.sampling.crops)
        if isinstance(image, Tensor):
            if image.ndim == 5:
                return image  # views already
            if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3 or not len(image):
                raise PeftError(f"a clip as a tensor is uint8 L 3 H W, not {image.dtype} {tuple(image.shape)}.")
            chosen = sampling.test(len(image)).flatten()
            return views_of(self.fit.tensor(image[chosen].cpu())[:, None], sampling)
        path = Path(image)
        try:
            frames, replaced = read_frames(path, fit, lambda length: sampling.test(length).flatten())
        except DataError as error:
            raise PeftError(f"{path} {error}.") from error
        if replaced:
            tell(f"note: {replaced} frames of {path} cannot be decoded: the one before takes their place")
        return views_of(frames, sampling)

    def predict(self, images: Any, batch_size: int = 8) -> list[Any]:
        """The class of each clip: paths or uint8 tensors `L 3 h w`, one or several."""
        one = isinstance(images, (str, Path)) or (isinstance(images, Tensor) and images.ndim == 4)
        given: Any = [images] if one else images
        return list(self.stream(given, batch_size))

    def found(self, paths: Sequence[str]) -> list[Path]:
        """Video files among files and, searched through, folders; a folder that holds pictures itself is a clip.

        Raises:
            PeftError: a path that does not exist, or no clip at all.
        """
        return search(paths, "clip", clips_in)


def on_clips(model: nn.Module, about: Backbone, card: dict[str, Any]) -> nn.Module:
    """The classifier of a run on clips before its adapter is loaded."""
    return as_video(model, card["clips"]["frames"], about.input_size, card["video"])
