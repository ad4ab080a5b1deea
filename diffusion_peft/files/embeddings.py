"""Files of textual inversion: diffusers' (a key a token), A1111's and kohya's (`emb_params`), SDXL's (`clip_l`, `clip_g`)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.hub.reach import PICKLES

SDXL = ("clip_l", "clip_g")


def write_embedding(file: Path, token: str, vectors: list[Tensor], a1111: bool = False) -> Path:
    """Writes one token's vectors, n D for each text encoder; SDXL's under clip_l and clip_g.

    Stock loaders: `load_textual_inversion(file, token=…)` takes diffusers' and A1111's; of SDXL's file each tensor by
    itself with its own text encoder and tokenizer.
    """
    if len(vectors) == 2:
        tensors = dict(zip(SDXL, vectors, strict=True))
    else:
        tensors = {"emb_params" if a1111 else token: vectors[0]}
    content = save(
        {key: value.float().contiguous() for key, value in tensors.items()}, {"format": "pt", "token": token}
    )
    write_files(file.parent, {file.name: content})
    return file


def is_embedding(file: Path) -> bool:
    """Whether a file is an embedding, by its keys; pickles are taken to be embeddings."""
    if file.suffix in PICKLES:
        return True
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as content:
            keys = list(content.keys())
    except (SafetensorError, OSError):
        return False
    return set(keys) in ({"emb_params"}, set(SDXL)) or (len(keys) == 1 and "." not in keys[0])


def read_embedding(file: Path, token: str | None = None, allow_pickle: bool = False) -> tuple[str, list[Tensor]]:
    """The token (given, named in the file, or the file's name) and its vectors n D, one tensor a text encoder.

    Raises:
        PeftError: no such file, a pickle without `allow_pickle`, none of the known forms.
    """
    if not file.is_file():
        raise PeftError(f"there is no embedding file {file}.")
    header: dict[str, str] = {}
    if file.suffix in PICKLES:
        content = read_pickle(file, allow_pickle)
    else:
        try:
            with safe_open(file, framework="pt") as opened:
                content = {key: opened.get_tensor(key) for key in opened.keys()}
                header = opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise PeftError(f"{file} is truncated or no safetensors file: get it again.") from error
    name = token or header.get("token") or f"<{file.stem}>"
    if isinstance(content.get("string_to_param"), dict):
        (vectors,) = list(content["string_to_param"].values())[:1] or [None]
        found, name = [vectors], token or str(content.get("name") or file.stem)
    elif set(content) == set(SDXL):
        found = [content[key] for key in SDXL]
    elif len(content) == 1:
        ((key, vectors),) = content.items()
        found, name = [vectors], name if key == "emb_params" else token or str(key)
    else:
        found = [None]
    if not all(isinstance(each, Tensor) and each.ndim in (1, 2) for each in found):
        raise PeftError(
            f"{file} is no embedding file: it has {', '.join(map(str, list(content)[:4]))}, not one token, emb_params, or "
            "clip_l and clip_g."
        )
    return name, [each.detach().float().reshape(-1, each.shape[-1]) for each in found]


def read_pickle(file: Path, allow: bool) -> dict[str, Any]:
    """A pickle's dictionary by torch's loader of tensors and plain values, where the user asks for it.

    Raises:
        PeftError: not asked for, or it holds anything else.
    """
    if not allow:
        raise PeftError(
            f"{file} is a pickle, which can run code when it is loaded: get it as .safetensors, or add --allow_pickle, which "
            "reads tensors and plain values only."
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, ImportError, AttributeError) as error:
        raise PeftError(f"{file} cannot be read ({str(error).strip().splitlines()[0]}).") from error
    except pickle.UnpicklingError as error:
        raise PeftError(f"{file} holds more than tensors and plain values, so it is not loaded.") from error
    if not isinstance(content, dict):
        raise PeftError(f"{file} holds no dictionary of tensors.")
    return content
