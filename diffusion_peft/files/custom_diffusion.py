"""diffusers' Custom Diffusion weights: `pytorch_custom_diffusion_weights.safetensors` for `unet.load_attn_procs`.

The stock loader wants an entry for every attention layer, self attention's empty; as a tensor of no elements it can stand
in a safetensors file. diffusers 0.42 changes nothing unless the call names the pipeline too:
`pipe.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.safetensors", _pipeline=pipe)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from diffusion_peft.files.source import Content, open_content
from peft_core.errors import PeftError
from peft_core.files import write_files

FILE_NAME = "pytorch_custom_diffusion_weights.safetensors"
_NAMES = {"to_k.weight": "to_k_custom_diffusion.weight", "to_v.weight": "to_v_custom_diffusion.weight",
          "to_q.weight": "to_q_custom_diffusion.weight", "to_out.0.weight": "to_out_custom_diffusion.0.weight",
          "to_out.0.bias": "to_out_custom_diffusion.0.bias"}  # fmt: skip


def write_concept(unet: Any, file: Path, trained: Mapping[str, Tensor]) -> Path:
    """Writes trained cross-attention weights by their stock names (`….attn2.to_k.weight`).

    Raises:
        PeftError: weights that the format has no place for, or keys without values.
    """
    file = file if file.suffix == ".safetensors" else file / FILE_NAME
    tensors: dict[str, Tensor] = {
        name: torch.empty(0) for name in unet.attn_processors if name.endswith("attn1.processor")
    }
    for key, value in trained.items():
        path, attn2, rest = key.partition(".attn2.")
        if not attn2 or rest not in _NAMES:
            raise PeftError(
                f"a Custom Diffusion file has no place for {key}: it holds weights of cross attention alone."
            )
        tensors[f"{path}.attn2.processor.{_NAMES[rest]}"] = value.detach().float().cpu().contiguous()
    layers = {key.partition(".attn2.")[0] for key in trained}
    for layer in layers:
        if not {f"{layer}.attn2.to_k.weight", f"{layer}.attn2.to_v.weight"} <= trained.keys():
            raise PeftError(
                "a Custom Diffusion file needs keys and values of each layer: train targets cross_k cross_v."
            )
    write_files(file.parent, {file.name: save(tensors, {"format": "pt"})})
    return file


def is_concept(values: Mapping[str, Any]) -> bool:
    """Whether a file's content is Custom Diffusion weights, by its keys."""
    return any(".processor.to_k_custom_diffusion." in key for key in values)


def read_concept(file: Path | Content, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Weights by their stock names, of a file, its folder, or such a file opened.

    Raises:
        PeftError: no such file, a pickle without `allow_pickle`, other keys.
    """
    if isinstance(file, Content):
        content = file
    else:
        usual = file / FILE_NAME if file.is_dir() and (file / FILE_NAME).is_file() else file
        content = open_content(usual, allow_pickle)
    file = content.file
    stock = {theirs: ours for ours, theirs in _NAMES.items()}
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for key, value in content.values.items():
        path, middle, rest = key.partition(".processor.")
        if len(value) == 0:
            continue
        if middle and rest in stock:
            found[f"{path}.{stock[rest]}"] = value
        else:
            strange.append(key)
    if strange or not found:
        raise PeftError(
            f"{file} is no Custom Diffusion file: it has {', '.join(strange[:3]) or 'no weights'}"
            f"{f' and {len(strange) - 3} more unknown keys' if len(strange) > 3 else ''}."
        )
    return found


@torch.no_grad()
def load_concept(unet: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Puts the weights into a stock UNet; how many.

    Raises:
        PeftError: keys or shapes that the UNet does not have, or values that it has already.
    """
    parameters = dict(unet.named_parameters())
    missing = sorted(key for key in weights if key not in parameters)
    if missing:
        raise PeftError(f"the UNet has no {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}.")
    for key, value in weights.items():
        if parameters[key].shape != value.shape:
            raise PeftError(f"{key} is {tuple(value.shape)} in the file, {tuple(parameters[key].shape)} in this base.")
    if all(torch.equal(parameters[key], value.to(parameters[key])) for key, value in weights.items()):
        raise PeftError("the file changes nothing: its weights are those of the base.")
    for key, value in weights.items():
        parameters[key].copy_(value)
    return len(weights)
