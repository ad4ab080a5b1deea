"""A base in one `.safetensors` file, converted once into a diffusers folder that is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from filelock import FileLock

from diffusion_peft.base.loading import first_line, quiet_loading
from peft_core.errors import PeftError
from peft_core.files import cache_root
from peft_core.jobs.hub.reach import PICKLES
from peft_core.jobs.runs.process import tell


def is_single_file(spec: str) -> bool:
    return spec.rpartition("@")[2].endswith((".safetensors", *PICKLES))


def as_folder(spec: str) -> Path:
    """The diffusers folder of FILE.safetensors, or of CONFIG@FILE.safetensors where CONFIG is a folder or hub id whose
    configurations fit the file; without CONFIG diffusers tells them from the file and gets them from the hub.

    Raises:
        PeftError: no such file, a pickle, or a file that is no Stable Diffusion model.
    """
    config, _, name = spec.rpartition("@")
    file = Path(name).expanduser()
    if file.suffix in PICKLES:
        raise PeftError(f"{file} is a pickle, which can run code when it is loaded: get the base as .safetensors.")
    if not file.is_file():
        raise PeftError(f"there is no base file {file}.")
    stat = file.stat()
    key = f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns} {config}"
    folder = cache_root() / "bases" / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            tell(f"{file.name} is converted once, into {folder}")
            _convert(file, config, folder)
    return folder


def _convert(file: Path, config: str, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import SafetensorError, safe_open

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    options = {"config": str(Path(config).expanduser())} if config else {}
    try:
        with safe_open(file, framework="pt") as content:
            xl = any(key.startswith("conditioner.embedders.1") for key in content.keys())
        with quiet_loading():
            pipeline = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_single_file(
                str(file), **options, **({} if xl else {"safety_checker": None})
            )
            pipeline.save_pretrained(part)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise PeftError(
            f"{file} cannot be read as a Stable Diffusion model ({first_line(error)}): without a network, name a "
            f"diffusers folder of the same architecture before it, as in FOLDER@{file.name}."
        ) from error
    os.replace(part, folder)
