"""A base in one `.safetensors` file, converted once into a diffusers folder that is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffusion_peft.base.loading import download, first_line, is_hub_id, quiet_loading
from peft_core.errors import PeftError
from peft_core.files import cache_root, read_json
from peft_core.jobs.hub.reach import PICKLES
from peft_core.jobs.runs.process import tell

_INDEX = "model_index.json"
_INSIDE = "model.diffusion_model."
"""Before a transformer's keys in files that hold other parts besides."""
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", "comfy_quant")
"""How keys of 8-bit files of ComfyUI end whose weights are wrong without their scales; converters pass these over."""
_FAILED = (SafetensorError, OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)
"""What converters raise for files that do not suit them."""


def is_single_file(spec: str) -> bool:
    return spec.rpartition("@")[2].endswith((".safetensors", *PICKLES))


def as_folder(spec: str) -> Path:
    """The diffusers folder of FILE.safetensors, or of CONFIG@FILE.safetensors where CONFIG is a folder or hub id whose
    configurations fit the file; without CONFIG diffusers tells them from the file and gets them from the hub. Of a diffusion
    transformer the file gives the transformer, and CONFIG, which must be named, all other parts.

    Raises:
        PeftError: no such file, a pickle, or a file that is no model which is known.
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
            rest = _pipeline_of(config)
            with _whole(folder) as part:
                if rest is None:
                    _convert(file, config, part)
                else:
                    _convert_transformer(file, rest, part)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` behind the block, or is gone where that fails."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert(file: Path, config: str, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    options = {"config": str(Path(config).expanduser())} if config else {}
    try:
        with safe_open(file, framework="pt") as content:
            xl = any(key.startswith("conditioner.embedders.1") for key in content.keys())
            if not any(".input_blocks." in key for key in content.keys()):
                raise ValueError(
                    "it holds no UNet; the file of a diffusion transformer needs the folder of its other parts"
                )
        with quiet_loading():
            pipeline = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_single_file(
                str(file), **options, **({} if xl else {"safety_checker": None})
            )
            pipeline.save_pretrained(folder)
    except _FAILED as error:
        raise PeftError(
            f"{file} cannot be read as a Stable Diffusion model ({first_line(error)}): without a network, name a "
            f"diffusers folder of the same architecture before it, as in FOLDER@{file.name}."
        ) from error


def _pipeline_of(config: str) -> Path | None:
    """The folder of a transformer's pipeline, None where `config` is none or a UNet's."""
    folder = Path(config).expanduser()
    if not folder.is_dir() and is_hub_id(config):
        folder = download(config)
    index = read_json(folder / _INDEX) if config and (folder / _INDEX).is_file() else {}
    return folder.absolute() if "transformer" in index else None


def _convert_transformer(file: Path, rest: Path, folder: Path) -> None:
    """The transformer of a file, by the converter that diffusers has for its class, among links to the other parts of `rest`."""
    import diffusers

    name = str(read_json(rest / _INDEX)["transformer"][1])
    wants = "name the folder of a pipeline of the same architecture before it, as in FOLDER@" + file.name
    try:
        tensors = load_file(file)
        if any(key.endswith(_SCALES) for key in tensors):
            wants = "get it in 16 bits, and give --quantize where it is too large"
            raise ValueError("its weights are 8-bit numbers with scales")
        if any(key.startswith(_INSIDE) for key in tensors):  # ComfyUI's, with VAE and text encoders besides
            tensors = {key.removeprefix(_INSIDE): value for key, value in tensors.items() if key.startswith(_INSIDE)}
        with quiet_loading():
            made = getattr(diffusers, name).from_single_file(tensors, config=str(rest), subfolder="transformer")
        made.save_pretrained(folder / "transformer")
        for place in rest.iterdir():
            if place.name != "transformer":
                _link(place, folder / place.name)
    except _FAILED as error:
        lacks = isinstance(error, LookupError) or "meta tensor" in str(error)
        why = "it lacks weights" if lacks else first_line(error)
        raise PeftError(f"{file} cannot be read as the transformer ({name}) of {rest} ({why}): {wants}.") from error


def _link(place: Path, at: Path) -> None:
    """A link, or a copy where the system makes none."""
    try:
        at.symlink_to(place, target_is_directory=place.is_dir())
    except OSError:
        shutil.copytree(place, at) if place.is_dir() else shutil.copy(place, at)
