"""Files of textual inversion: diffusers' (a key a token), A1111's and kohya's (`emb_params`), SDXL's (`clip_l`, `clip_g`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from diffusion_peft.files.source import Content, open_content
from peft_core.errors import PeftError
from peft_core.files import write_files

SDXL = ("clip_l", "clip_g")
_FIRST = ("emb_params", "clip_l", "text_encoders_0")
"""Keys of the first text encoder's vectors that name no token."""
_SECOND = ("clip_g", "text_encoders_1")
_BUNDLED = "bundle_emb."


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


def is_embedding(values: dict[str, Any]) -> bool:
    """Whether a file's content is an embedding, by its keys."""
    keys = set(values)
    pair = len(keys) == 2 and bool(keys & set(_FIRST)) and bool(keys & set(_SECOND))
    return pair or "string_to_param" in keys or (len(keys) == 1 and "." not in next(iter(keys)))


def read_embedding(file: Path, token: str | None = None, allow_pickle: bool = False) -> tuple[str, list[Tensor]]:
    """The token (given, named in the file, or the file's name) and its vectors n D, one tensor a text encoder.

    Raises:
        PeftError: no such file, a pickle without `allow_pickle`, none of the known forms.
    """
    return embedding_of(open_content(file, allow_pickle), token)


def embedding_of(content: Content, token: str | None = None) -> tuple[str, list[Tensor]]:
    """`read_embedding` of an opened file."""
    values, file = content.values, content.file
    name = token or content.header.get("token") or f"<{file.stem}>"
    if isinstance(values.get("string_to_param"), dict):
        found = list(values["string_to_param"].values())[:1]
        name = token or str(values.get("name") or file.stem)
    elif len(values) == 2 and is_embedding(values):
        found = [next(values[key] for key in names if key in values) for names in (_FIRST, _SECOND)]
    elif len(values) == 1:
        ((key, vectors),) = values.items()
        found, name = [vectors], name if key in _FIRST else token or str(key)
    else:
        found = []
    if not found or not all(isinstance(each, Tensor) and each.ndim in (1, 2) for each in found):
        raise PeftError(
            f"{file} is no embedding file: it has {', '.join(map(str, list(values)[:4]))}, not one token, emb_params, or "
            "clip_l and clip_g."
        )
    return name, [each.detach().float().reshape(-1, each.shape[-1]) for each in found]


def bundled(content: Content) -> tuple[dict[str, list[Tensor]], Content]:
    """The embeddings that A1111 reads from a LoRA file (`bundle_emb.NAME.KEY`), by token, and the file without them.

    Raises:
        PeftError: an embedding of no known form.
    """
    own: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Any] = {}
    for key, value in content.values.items():
        if not key.startswith(_BUNDLED):
            rest[key] = value
            continue
        name, _, inner = key.removeprefix(_BUNDLED).partition(".")
        own.setdefault(name, {})["emb_params" if inner.startswith("string_to_param") else inner] = value
    found = {}
    for name, values in own.items():
        token, vectors = embedding_of(replace(content, values=values), f"<{name}>")
        found[token] = vectors
    return found, replace(content, values=rest)
