"""What the golden tensors were made with: weights that depend on names alone, and draws that depend on their number alone."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor


def values(name: str, shape: Any) -> Tensor:
    """Normal numbers from the name's CRC-32 (NumPy's frozen `RandomState`): around 1 for weights of norms, small for biases."""
    drawn = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)))
    last = name.rpartition(".")[2]
    if name == "x":
        return drawn
    if last == "gamma":
        return 0.5 + 0.1 * drawn
    if "norm" in name and last == "weight":
        return 1 + 0.2 * drawn
    return drawn * (0.25 if len(shape) > 1 else 0.2)


@contextmanager
def counted_draws() -> Iterator[None]:
    """Dropout and stochastic depth draw by the number of the draw and the shape, whoever draws."""
    calls: dict[str, int] = {}

    def draw(kind: str, shape: Any, keep: float) -> Tensor:
        calls[kind] = calls.get(kind, -1) + 1
        state = np.random.RandomState(zlib.crc32(f"{kind} {calls[kind]}".encode()))
        return torch.from_numpy(state.random_sample(tuple(shape))) < keep

    def bernoulli_(tensor: Tensor, p: float = 0.5) -> Tensor:
        with torch.no_grad():
            return tensor.copy_(draw("bernoulli", tensor.shape, p))

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * draw("dropout", x.shape, 1 - p).to(x) / (1 - p) if training and p else x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bernoulli_", bernoulli_)
        patch.setattr(F, "dropout", dropout)
        yield


def golden(case: str) -> dict[str, Tensor]:
    with safe_open(Path(__file__).with_name(f"{case}.safetensors"), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}
