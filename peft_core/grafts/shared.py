"""One tensor of a model that many grafts use: it stands once, at the adapted model's root, and is moved and copied with it."""

from typing import Any

from torch import Tensor, nn

from peft_core.grafts.calls import root
from peft_core.grafts.graft import Graft


class Shared(Graft):
    """A parameter (trained and saved), a plain tensor (neither, as whoever made it can make it again) or a module."""

    def __init__(self, made: nn.Parameter | Tensor | nn.Module) -> None:
        super().__init__()
        self.slot: tuple[str, str] = ("", "")
        self.token = object()
        if isinstance(made, nn.Module | nn.Parameter):
            self.value = made
        else:
            self.register_buffer("value", made, persistent=False)

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.slot = (adaptation, slot)


class Reference:
    """Finds what is shared: on a replica of the model (DataParallel) the replica's own."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def __call__(self) -> Any:
        model = root()
        adaptation, slot = self.shared.slot
        slots: Any = None if model is None else model._modules.get("peft")
        if slots is not None and adaptation in slots and slot in slots[adaptation]:
            found = slots[adaptation][slot]
            if getattr(found, "token", None) is self.shared.token:
                return found.value
        return self.shared.value
