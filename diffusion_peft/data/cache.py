"""What is computed once and kept on disk, one file an entry, named by all that it depends on.

Each file is written beside its place and moved there, so an interruption leaves whole entries only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from peft_core.files import cache_root, write_files

VERSION = 1


def key_of(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, (VERSION, *parts))).encode()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A hash of every byte of a model's weights, of their names and of its configuration."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        kept = {k: v for k, v in plain.items() if not k.startswith("_") and k not in ("dtype", "transformers_version")}
        digest.update(repr(sorted(kept.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Cache:
    """Entries of one kind (`latents`, `texts`) under a root folder; None as the root keeps them in memory only."""

    def __init__(self, kind: str, root: Path | None) -> None:
        self.folder = None if root is None else root / kind
        self.memory: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry; None where there is none, or a damaged one."""
        if key in self.memory or self.folder is None:
            return self.memory.get(key)
        try:
            with safe_open(self._path(key), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError):
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        if self.folder is None:
            self.memory[key] = tensors
            return
        path = self._path(key)
        write_files(path.parent, {path.name: save(tensors)})

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"


def open_cache(kind: str, where: str) -> Cache:
    """`where`: auto (the user's cache folder), off (memory), or a folder."""
    return Cache(kind, {"auto": cache_root(), "off": None}.get(where, Path(where).expanduser()))
