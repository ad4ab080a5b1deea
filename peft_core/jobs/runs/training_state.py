"""The state of a training script that is no run folder: one safetensors file, whole or not there."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from peft_core.files import write_files


def keep(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that is whole or as it was before.

    Raises:
        PeftError: the folder cannot be written.
    """
    write_files(path.parent, {path.name: save({name: value.contiguous() for name, value in tensors.items()})})


def values_and_moments(optimiser: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`NAME.value`, `NAME.mean` and `NAME.square` of every parameter, by the names given here."""
    tensors = {}
    for name, parameter in parameters.items():
        moments = optimiser.state[parameter]
        tensors[f"{name}.value"] = parameter.data
        tensors[f"{name}.mean"], tensors[f"{name}.square"] = moments["exp_avg"], moments["exp_avg_sq"]
    return tensors


def put_back(
    state: Mapping[str, Tensor], step: int, optimiser: torch.optim.AdamW, parameters: Mapping[str, Tensor]
) -> None:
    """The inverse of `values_and_moments`, after `step` steps."""
    for name, parameter in parameters.items():
        parameter.data.copy_(state[f"{name}.value"])
        optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": state[f"{name}.mean"],
            "exp_avg_sq": state[f"{name}.square"],
        }
