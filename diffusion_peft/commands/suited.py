"""Which methods suit a UNet."""

from __future__ import annotations

from peft_core.jobs.cli import listing

UNFIT = ("file", "tokens", "head", "stream", "grid")


def unet_methods() -> dict[str, dict[str, tuple[str, str]]]:
    """Branch -> name -> (paper, about), of the methods that a UNet takes and of their presets: none that needs a file, prompt
    tokens, a classifier's head, one stream all through or a fixed grid of patches."""
    return listing.methods("diffusion", never=UNFIT)
