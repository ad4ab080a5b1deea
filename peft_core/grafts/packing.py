"""Parts of grafts that keep few bits a number say how their tensors lie in an adapter file.

What an adaptation packs stands there as one tensor of bytes, `peft.NAME.packed`, part after part in the order of the model's
modules: a name a tensor would take more room than 1-bit weights do.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from peft_core.attach import inserted_by, is_inserted
from peft_core.errors import PeftError
from peft_core.stock import whole_of


class PackedOnDisk:
    """Mixed into a module inside a graft. Tensors go by their names in that module."""

    packs_stock: tuple[str, ...] = ()
    """Stock parameters of the module it is joined to that it packs along, where they train; as stock.NAME."""

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All its tensors as bytes, (n) uint8."""
        raise NotImplementedError(f"{type(self).__name__} must define pack(tensors)")

    def unpack(self, data: Tensor) -> dict[str, Tensor]:
        """The tensors that give the outputs of those that were packed, to the last bit."""
        raise NotImplementedError(f"{type(self).__name__} must define unpack(data)")

    def packed_size(self, tensors: Mapping[str, Tensor]) -> int:
        """How many bytes tensors of these shapes take."""
        raise NotImplementedError(f"{type(self).__name__} must define packed_size(tensors)")


def pack(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors, as they are written."""
    left, packed = dict(tensors), dict[str, list[Tensor]]()
    for name, part, keys in _parts(model, tensors):
        packed.setdefault(name, []).append(
            part.pack({own: whole_of(left.pop(key).detach()) for own, key in keys.items()}).cpu()
        )
    return left | {_key(name): torch.cat(data) for name, data in packed.items()}


def unpack(
    model: nn.Module, weights: dict[str, Tensor], expected: Mapping[str, Tensor], beside: bool = False
) -> dict[str, Tensor]:
    """What `pack` made, as the tensors that `expected` names.

    Raises:
        PeftError: it is not as long as this model's would be, or holds a head and loads `beside` another adaptation.
    """
    left, read = dict(weights), dict[str, int]()
    for name, part, keys in _parts(model, expected):
        data = left.get(_key(name))
        if data is None:
            continue
        start = read.get(name, 0)
        stop = read[name] = start + part.packed_size({own: expected[key] for own, key in keys.items()})
        if data.dtype != torch.uint8 or stop > len(data):
            raise PeftError(
                f"the packed weights of {name} do not fit this model: {len(data)} bytes, and it takes more; load "
                "them onto the model that they were saved from."
            )
        left |= {keys[own]: tensor for own, tensor in part.unpack(data[start:stop]).items()}
    for name, stop in read.items():
        if stop < len(data := left.pop(_key(name))):
            if beside and any(isinstance(m, PackedOnDisk) and m.packs_stock for m in model.modules()):
                raise PeftError(f"{name} packs the head, which is the model's own: load it first.")
            raise PeftError(
                f"the packed weights of {name} do not fit this model: {len(data)} bytes, and it takes {stop}; load "
                "them onto the model that they were saved from."
            )
    return left


def _key(name: str) -> str:
    return f"peft.{name}.packed"


def _parts(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, PackedOnDisk, dict[str, str]]]:
    """Adaptation, part and its tensors' names -> keys, of all parts that pack what is there."""
    for path, module in model.named_modules():
        if not isinstance(module, PackedOnDisk) or not is_inserted(path):
            continue
        owner = path.partition(".peft.")[0]
        keys = {key.removeprefix(f"{path}."): key for key in tensors if key.startswith(f"{path}.")}
        keys |= {f"stock.{name}": f"{owner}.{name}" for name in module.packs_stock if f"{owner}.{name}" in tensors}
        if all(f"stock.{name}" in keys for name in module.packs_stock):
            yield inserted_by(path), module, keys
