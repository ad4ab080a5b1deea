"""Which methods suit a UNet."""

from __future__ import annotations

from diffusion_peft.training.needs import needs_of
from peft_core.jobs.cli import listing


def unet_methods() -> dict[str, dict[str, tuple[str, str]]]:
    """Branch -> name -> (paper, about), of the methods that a UNet takes and of their presets: none that needs a file, prompt
    tokens, a classifier's head, one stream all through or a fixed grid of patches."""
    unfit = {"file", "tokens", "head", "stream", "grid"}
    branches = {
        branch: {name: words for name, words in rows.items() if not unfit & set(needs_of(name))}
        for branch, rows in listing.methods("diffusion").items()
    }
    return {branch: rows for branch, rows in branches.items() if rows}
