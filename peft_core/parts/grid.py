"""Tokens as a picture: the patches of a sequence see each other over the grid, the other tokens do not."""

from collections.abc import Callable

import torch
from torch import Tensor

from peft_core.errors import PeftError


def over_patches(
    x: Tensor, grid: tuple[int, int], convolve: Callable[[Tensor], Tensor], alone: Callable[[Tensor], Tensor], who: str
) -> Tensor:
    """x B N D, whose last H·W tokens (or whole frames of them) are patches, or B H W D: pictures B' D H W through `convolve`,
    the tokens before them through `alone`.

    Raises:
        PeftError: fewer tokens than patches, in the words of the method `who`.
    """
    if x.dim() == 4:
        return _pictures(x[:, None], convolve)[:, 0]
    height, width = grid
    frames = x.shape[1] // (height * width)
    if not frames:
        raise PeftError(f"{who} was made for pictures of {height} × {width} patches: {x.shape[1]} tokens came.")
    others = x.shape[1] - frames * height * width
    patches = _pictures(x[:, others:].unflatten(1, (frames, height, width)), convolve).flatten(1, 3)
    return torch.cat((alone(x[:, :others]), patches), 1)


def _pictures(frames: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """B T H W D."""
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)
    return convolve(pictures).permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])
