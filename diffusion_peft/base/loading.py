"""Loading of other libraries' models, without their noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_core.errors import PeftError


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences the libraries' bars and notes while they load."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    levels = [each.get_verbosity() for each in (of_diffusers, of_transformers)]
    bars = [each.is_progress_bar_enabled() for each in (of_diffusers, of_transformers)]
    try:
        for each in (of_diffusers, of_transformers):
            each.set_verbosity_error()
            each.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level, bar in zip((of_diffusers, of_transformers), levels, bars, strict=True):
            each.set_verbosity(level)
            if bar:
                each.enable_progress_bar()


def is_hub_id(spec: str) -> bool:
    """Whether it can be a hub's name, USER/NAME, and is no path."""
    return spec.count("/") == 1 and not spec.startswith(("./", "../", "/", "~"))


def download(spec: str) -> Path:
    """The folder of a hub's base.

    Raises:
        PeftError: it cannot be reached.
    """
    from diffusers import DiffusionPipeline

    try:
        with quiet_loading():
            return Path(DiffusionPipeline.download(spec, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise PeftError(
            f'the base "{spec}" cannot be had from the hub ({first_line(error)}): check the name and the network, or give a '
            "folder, a file, or `reference`."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
