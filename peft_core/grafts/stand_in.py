"""Other numbers in place of a stock weight's: packed, saved with the adapter, and gone when it is taken out.

The stock tensors stay as they are, so that `disabled`, `remove`, a stock checkpoint and a file on another machine need nothing
more; what is paid is the packed weight beside the stock one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.kernels.quantised import Packed, dense

_KINDS = ("groups", "blocks", "levels")
_OF_BLOCKS = "nf4"


class StandIn(Delta):
    """W' = Q on its rows, frozen; W' = W as long as it holds nothing (`put`, or a file, gives it Q).

    Buffers: `form`, its kind, shape and what its kind needs as whole numbers, and the packed tensors.
    """

    stands_in = True

    def __init__(self, rows: tuple[int, int] | None, device: Any = None) -> None:
        super().__init__(rows)
        self.names: tuple[str, ...] = ()
        self.numbers: tuple[int, ...] = ()
        self.register_buffer("form", torch.empty(0, dtype=torch.int64, device=device))

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if isinstance(module, nn.Linear | nn.MultiheadAttention) or hasattr(module, "in_features"):
            return None
        return f"a {type(module).__name__}'s weight has no packed form"

    def put(self, packed: Packed) -> None:
        """Takes a packed weight (rows, in)."""
        numbers = (number for number in packed.about if number != _OF_BLOCKS)
        tensors = {f"packed_{at}": tensor for at, tensor in enumerate(packed.tensors)}
        self._take((_KINDS.index(packed.kind), *packed.shape, *numbers),
                   tensors | ({} if packed.scale is None else {"scale": packed.scale}))  # fmt: skip

    def _take(self, numbers: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        form: Any = self.form
        for name in self.names:
            del self._buffers[name]
        self.numbers, self.names = tuple(numbers), tuple(tensors)
        for name, tensor in {"form": torch.tensor(self.numbers, dtype=torch.int64), **tensors}.items():
            self.register_buffer(name, tensor.detach().to(form.device))

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if "form" not in tensors:
            return
        numbers = tensors["form"].tolist()
        if tensors["form"].is_floating_point() or (
            numbers and not (len(numbers) > 3 and 0 <= numbers[0] < len(_KINDS))
        ):
            raise PeftError("a weight that stands in for a stock one is of an unknown form: save the adapter again.")
        device: Any = self.form.device
        others = {name: torch.empty_like(tensor, device=device) for name, tensor in tensors.items() if name != "form"}
        self._take(numbers, others)

    def held(self) -> Packed | None:
        if not self.names:
            return None
        kind, out, inner, *about = self.numbers
        named: dict[str, Any] = self._buffers
        tensors = tuple(named[name] for name in self.names if name != "scale")
        before = (_OF_BLOCKS,) if _KINDS[kind] == "blocks" else ()
        return Packed(_KINDS[kind], (out, inner), tensors, (*before, *about), named.get("scale"))

    def forward(self, weight: Tensor) -> Tensor:
        packed = self.held()
        return weight if packed is None else dense(packed, weight.dtype)


def refuse_where_changed(module: nn.Module, path: str, name: str) -> None:
    """Raises PeftError where another adaptation changes the module: what stands in comes before all changes."""
    slots: Any = module._modules.get("peft") or {}
    for owner, there in slots.items():
        if any(isinstance(graft, Delta) for graft in there.values()):
            raise PeftError(
                f"{name} puts other numbers in place of {path}'s weight, which {owner} changes already: adapt with {name} first."
            )
