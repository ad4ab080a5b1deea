"""`--offload blocks`: a denoiser whose weights stay on disk, mapped into memory and let go of block by block.

A weight is a view of its .safetensors file (mmap, private): nothing is read before it is used, and what was read can be
forgotten, since the file has it still. As soon as another block runs, forward or backward, the pages of the one before are
given back, so that a step holds one block beside activations and adapter. The numbers are those of weights in memory.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.loading import first_line
from peft_core.anatomies import anatomy_of
from peft_core.attach import is_inserted
from peft_core.errors import PeftError

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base

_NAME = "diffusion_pytorch_model.safetensors"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

Span = tuple[mmap.mmap, int, int]
"""A mapped file, and from where to where in it, in bytes."""


@dataclass
class Pages:
    """Where blocks lie in mapped files, by path ("" is what stands outside all of them), and which of them is in use."""

    spans: dict[str, list[Span]] = field(default_factory=dict)
    weights: dict[str, list[Tensor]] = field(default_factory=dict)
    current: str = ""

    def add(self, block: str, weight: Tensor, span: Span) -> None:
        self.spans.setdefault(block, []).append(span)
        self.weights.setdefault(block, []).append(weight)

    def enter(self, block: str) -> None:
        """This block is about to run: the one before is let go of.

        Raises:
            PeftError: somebody has written into its weights, which would be lost.
        """
        if block == self.current:
            return
        if any(weight._version for weight in self.weights.get(self.current, ())):
            raise PeftError(
                f"weights of {self.current or 'the denoiser'} were overwritten, which --offload blocks cannot keep: leave it out."
            )
        for file, start, stop in self.spans.get(self.current, ()):
            start -= start % mmap.PAGESIZE
            file.madvise(mmap.MADV_DONTNEED, start, stop - start)
        self.current = block


def mapped(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A model of a folder of diffusers, its weights mapped.

    Raises:
        PeftError: no .safetensors there, a weight that is missing, or of another precision in the file.
    """
    from accelerate import init_empty_weights

    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of buffers, as `from_pretrained` has it
    try:
        with init_empty_weights(include_buffers=False):
            model: nn.Module = cls.from_config(cls.load_config(folder))
    finally:
        torch.set_default_dtype(usual)
    tensors = {name: found for file in weight_files(folder) for name, found in tensors_of(file)}
    pages, exact = Pages(), {*(getattr(cls, "_keep_in_fp32_modules", None) or ())}
    blocks = {path for paths in anatomy_of(model).blocks.values() for path in paths}
    for key, like in [*model.named_parameters(), *model.named_buffers()]:
        if key not in tensors:
            if isinstance(like, nn.Parameter):
                raise PeftError(f"{folder} lacks the weight {key}: get it again.")
            continue
        tensor, span = tensors[key]
        if tensor.shape != like.shape:
            raise PeftError(f"{folder}: its weight {key} is {tuple(tensor.shape)}, and {tuple(like.shape)} is needed.")
        always = bool(exact & {*key.split(".")})
        wanted = torch.float32 if always else dtype
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        if not isinstance(like, nn.Parameter):
            module._buffers[name] = tensor.to(wanted, copy=True) if tensor.is_floating_point() else tensor.clone()
            continue
        if tensor.dtype != wanted and tensor.dim() > 1 and not always:
            named = str(tensor.dtype).removeprefix("torch.")
            raise PeftError(
                f"--offload blocks reads weights as they lie in {folder}, in {named}: give --dtype {named}, or save them anew."
            )
        weight = nn.Parameter(tensor.to(wanted), requires_grad=False)
        module._parameters[name] = weight
        if tensor.dtype == wanted:
            pages.add(next((path for path in _above(key) if path in blocks), ""), weight, span)
    for path in ("", *blocks):
        watch(model.get_submodule(path), path, pages)
    return model


def check_offload(base: Base, device: torch.device) -> None:
    """Raises PeftError: blocks cannot be let go of on this device."""
    if base.offload and device.type != "cpu":
        raise PeftError(
            f"--offload blocks reads weights for a processor, and this run is on {device.type}: leave it out (--quantize nf4 and "
            "--gradient_checkpointing save a GPU's memory), or give --trainer.accelerator cpu."
        )


def check_frozen(denoiser: nn.Module, method: str) -> None:
    """Raises PeftError: weights that lie on disk train."""
    stock = [key for key, weight in denoiser.named_parameters() if weight.requires_grad and not is_inserted(key)]
    if stock:
        raise PeftError(
            f"{method} trains stock weights ({stock[0]} …), which --offload blocks leaves on disk: leave it out, or take a "
            "method whose parameters stand beside them, such as lora."
        )


def watch(module: nn.Module, path: str, pages: Pages) -> None:
    """Pages are told when a module begins its forward, and its backward."""
    module.register_forward_pre_hook(partial(_entering, path, pages))
    if path:
        module.register_forward_hook(partial(_left, path, pages))


def _entering(path: str, pages: Pages, module: nn.Module, args: Any) -> None:
    pages.enter(path)


def _left(path: str, pages: Pages, module: nn.Module, args: Any, output: Any) -> None:
    for each in output if isinstance(output, tuple | list) else (output,):
        if isinstance(each, Tensor) and each.requires_grad:
            each.register_hook(partial(_back, path, pages))


def _back(path: str, pages: Pages, gradient: Tensor) -> None:
    pages.enter(path)


def _above(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))


def weight_files(folder: Path) -> list[Path]:
    """Raises PeftError: there is no .safetensors, or no such shard."""
    index = folder / f"{_NAME}.index.json"
    names = [_NAME]
    if index.is_file():
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise PeftError(f"--offload blocks reads .safetensors, and {folder} has no {missing[0]}: save the base anew.")
    return [folder / name for name in names]


def tensors_of(path: Path) -> Iterator[tuple[str, tuple[Tensor, Span]]]:
    """The tensors of a .safetensors file as views of it.

    Raises:
        PeftError: a damaged file, or a tensor of another kind than 16 and 32 bit floats.
    """
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, about in header.items():
            start, stop = (8 + length + offset for offset in about["data_offsets"])
            count = (stop - start) // _DTYPES[about["dtype"]].itemsize
            tensor = torch.frombuffer(whole, dtype=_DTYPES[about["dtype"]], count=count, offset=start)
            yield name, (tensor.view(about["shape"]), (whole, start, stop))
    except (struct.error, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PeftError(
            f"{path} cannot be mapped ({first_line(error)}): get it again, or leave --offload out."
        ) from error
