"""Which methods suit a UNet."""

from __future__ import annotations

from diffusion_peft.training.needs import needs_of
from peft_core.jobs.cli import listing


def unet_methods() -> dict[str, str]:
    """Name -> about, of the methods that a UNet takes and of their presets: none that needs a file, prompt tokens or a
    classifier's head."""
    rows = listing.methods("diffusion")
    return {name: about for name, about in rows.items() if not {"file", "tokens", "head"} & set(needs_of(name))}
