"""What of `fit`'s options does not go together, told before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion_peft.data.concepts import Concept
from diffusion_peft.data.pictures import check_place
from diffusion_peft.data.shares import share_of
from peft_core.errors import PeftError


def check_val(settings: dict[str, Any]) -> None:
    """Raises PeftError: `--val` that is no share and no folder, or what goes with it alone."""
    val = settings["val"]
    if val is None:
        if settings["patience"] or settings["val_every"]:
            raise PeftError(
                "--patience and --val_every are about the loss of held-out pictures: give --val 0.1, or a folder."
            )
    elif share_of(val) is None:
        settings["val"] = place = str(absolute(val))
        check_place(place)
        if str(settings["data"]).endswith(".json"):
            raise PeftError(
                f"{settings['data']} lists several concepts, of which --val holds out a share: give --val 0.1."
            )


def check_offload(settings: dict[str, Any]) -> None:
    """Raises PeftError: what cannot be had of weights that stay on disk."""
    if settings["offload"] == "none":
        return
    for flag, given in (("quantize", settings["quantize"] != "none"), ("compile", settings["compile"])):
        if given:
            raise PeftError(f"--offload blocks leaves weights on disk as they are: leave --{flag} out.")


def check_slider(settings: dict[str, Any]) -> list[Concept]:
    """Raises PeftError: options that a slider has no use for."""
    for key in ("text_method", "placeholder", "class_prompt"):
        if settings[key] is not None:
            raise PeftError(f"a slider changes the UNet from prompts or picture pairs: it has no use for --{key}.")
    return []


def absolute(spec: str | None) -> str | None:
    """A path made absolute, so that the run can be used from another folder; names stay."""
    if spec is None or spec == "reference" or spec.startswith("world/"):
        return spec
    config, at, name = spec.rpartition("@")
    path = Path(name).expanduser()
    if not path.exists():
        return spec
    return f"{absolute(config) if at else ''}{at}{path.absolute()}"
