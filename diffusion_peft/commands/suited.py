"""Which methods suit a UNet."""

from __future__ import annotations

from diffusion_peft.training.needs import needs_of
from peft_core.jobs.cli import listing


def unet_methods() -> dict[str, str]:
    """Name -> about, of the methods that a UNet takes and of their presets: none that needs a file, prompt tokens, a
    classifier's head, one stream all through or a fixed grid of patches."""
    rows = listing.methods("diffusion")
    return {
        name: about
        for name, about in rows.items()
        if not {"file", "tokens", "head", "stream", "grid"} & set(needs_of(name))
    }
