"""Which methods suit a UNet."""

from __future__ import annotations

from peft_core.jobs.cli import listing


def unet_methods() -> dict[str, str]:
    """Name -> about, of the methods that a UNet takes and of their presets: none that needs a file, prompt tokens or a
    classifier's head."""
    return listing.methods("diffusion", but=("lora_file", "vpt", "linear"))
