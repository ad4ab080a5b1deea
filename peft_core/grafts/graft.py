"""Grafts: the ways to join something to a frozen model without taking its modules apart.

A grafted module keeps its class's name, its parameters and their keys; it gains one submodule `peft`, which holds the
grafts by adaptation and by slot (`blocks.0.attn.qkv.peft.lora.q.A`). Weight changes swap the module's class for a subclass
whose forward runs with the changed weight (`weight_changes`); everything else acts in two module-level hooks (`entering`,
`leaving`). So deep copies, pickles, strict loading of stock checkpoints and one-graph compilation keep working.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.grafts.calls import state


class Graft(nn.Module):
    """What is joined to a module: off while `enabled` is False, weighed by `factor` (see `set_scale`).

    `arg` and `output` say which argument of the module's call, and which part of what it returns, is the stream: a
    position, or a name where it is passed, or returned, by one.
    """

    scalable: ClassVar[bool] = True
    arg: int | str = 0
    output: int | str = 0
    order: int = 0
    """Grafts of a lower order act first on what enters the module, and last on what leaves it."""
    wraps: ClassVar[bool] = False
    """What it does on entering it takes back on leaving: before all others there, the last to enter first."""
    alone: ClassVar[bool] = True
    """It may be left out of a forward while others of its adaptation act."""
    enabled: bool
    factor: float
    left_out: Callable[[], bool] | None = None
    """Called before it acts: whether this forward goes without it (see `parts.dropping`)."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.factor = 1.0

    def named(self, adaptation: str, path: str, slot: str) -> None:
        """Told once where it stands: what it needs of that for its keys in the state of a forward."""

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Told the tensors, by their names here, that are about to be loaded: it may take their sizes.

        Raises:
            PeftError: they cannot be its own.
        """

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if type(self).fit is not Graft.fit:
            self.fit({key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)})
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def before(self, x: Tensor) -> Tensor:
        """What the module receives in place of x."""
        return x

    def after(self, y: Tensor) -> Tensor:
        """What leaves the module in place of y."""
        return y

    def entering(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the module is called with in place of args and kwargs."""
        if type(self).before is Graft.before:
            return args, kwargs
        return put_argument(module, args, kwargs, self.arg, self.before(argument(module, args, kwargs, self.arg)))

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """What the module's call gives in place of `output`."""
        if type(self).after is Graft.after:
            return output
        return put_output(output, self.output, self.after(part_of(output, self.output)))

    @classmethod
    def acts_before(cls) -> bool:
        return cls.before is not Graft.before or cls.entering is not Graft.entering

    @classmethod
    def acts_after(cls) -> bool:
        return cls.after is not Graft.after or cls.leaving is not Graft.leaving


class Call(Graft):
    """Sees, and may change, everything that a module is called with."""

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the module is called with in place of args and kwargs."""
        return args, kwargs

    def entering(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return self.call(module, args, kwargs)


class Delta(Graft):
    """A weight change: `forward(W) -> W'` on rows `rows` of a weight, `bias(b) -> b'` on the same rows of its bias.

    `kernel(x, W, b, deltas)` may compute a linear better than F.linear(x, W', b'); it is used where all changes of a linear
    share it (`Formed` has one for any that make a dense W'). `conv_kernel(module, x, delta)` likewise runs a convolution's
    only change, or gives None where it cannot, and `packed_kernel(x, packed, b, deltas)` a linear whose weight is quantised.
    A change with `reads_input` cannot be written as a weight: `on_input` adds to the output.
    """

    kernel: ClassVar[Any] = None
    conv_kernel: ClassVar[Any] = None
    packed_kernel: ClassVar[Any] = None
    additive: ClassVar[bool] = False
    """W' = W + C, and `on_input(x, run)` computes C x without forming C."""
    commutes: ClassVar[bool] = False
    """W' = W + C with a C that does not depend on W: such changes may be written into W in any order."""
    needs_matrix: ClassVar[bool] = False
    """It factors a matrix or acts on inputs: the vectors of norms are refused."""
    shifts: ClassVar[bool] = False
    """It adds to the bias what it makes of the weight: `shift`."""
    maps_input: ClassVar[bool] = False
    """`on_input` gives what is added to the input, not to the output."""
    maps_output: ClassVar[bool] = False
    """It `reads_input` only to be asked then: `on_output(y)` gives what is added to its rows of a linear's output."""
    kernel_reads_input: ClassVar[bool] = False
    """Its kernel runs it also while it `reads_input`."""
    stands_in: ClassVar[bool] = False
    """Its W' is another weight, whatever W is: it comes before all other changes."""
    rebuilds_input: ClassVar[bool] = False
    """Its kernel keeps an input's source where the input carries a tag (see `rebuild`)."""
    reads_input: bool = False
    called: bool = True
    """False where the module's owner reads its weight and does not call it."""
    _looked: tuple[Any, Any] | None = None

    def __init__(self, rows: tuple[int, int] | None = None):
        super().__init__()
        self.rows = rows

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        """Why changes of this class cannot act on rows of this module's weight; None where they can."""
        if isinstance(module, nn.Embedding) and cls.look_up is Delta.look_up:
            return "an embedding looks its rows up and multiplies nothing"
        if cls.needs_matrix and weight.dim() < 2:
            return f"a {type(module).__name__} has a vector for a weight, no matrix"
        if not is_plain(weight) and not cls.additive:
            return "its weight is quantised, and beside that only changes that add can run"
        return None

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(W) -> W'")

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return bias

    def stock_loaded(self, weight: Tensor) -> None:
        """Told that a checkpoint gave the stock weight, its own rows of it, for what it keeps of the one that was there."""

    def shift(self, weight: Tensor) -> Tensor:
        """b' = bias(b) + shift(W), with the W that `forward` gets."""
        raise NotImplementedError(f"{type(self).__name__} must define shift(W) where it shifts")

    def packed_values(self, module: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
        """(tensor, its new value) of a quantised module that then stands for W'; None where they cannot."""
        return None

    def on_input(self, x: Tensor, run) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define on_input(x, run)")

    def on_output(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define on_output(y) where it maps the output")

    def once_a_step(self, parameters: Iterable[Tensor], others: Any, look: Callable[[], Any]) -> Any:
        """look(), which depends on these parameters and on `others`: what costs a synchronisation is looked for anew only after
        an optimiser step, or where another parameter stands in one's place."""
        key = (*((id(parameter), parameter._version) for parameter in parameters), others)
        looked = self._looked
        if looked is None or looked[0] != key:
            self._looked = looked = key, look()
        return looked[1]

    def look_up(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Of an embedding: the rows for these ids, from those that the stock table gives."""
        raise NotImplementedError(f"{type(self).__name__} must define look_up(ids, rows) to change an embedding")


def grafts(module: nn.Module, kind: type[Graft] = Graft) -> Iterator[Any]:
    """The active grafts of a module, in order of installation."""
    slots = module._modules.get("peft")
    if slots is not None:
        for slot in slots.children():
            for graft in slot.children():
                if isinstance(graft, kind) and graft.enabled and (graft.left_out is None or not graft.left_out()):
                    yield graft


def entering(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The forward pre-hook of grafted and of read modules."""
    for key, arg in module.__dict__.get("peft_taps", ()):
        state()[key] = argument(module, args, kwargs, arg)
    for graft in sorted(grafts(module), key=lambda graft: graft.order):
        args, kwargs = graft.entering(module, args, kwargs)
    return args, kwargs


def leaving(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook of grafted modules."""
    present = sorted(grafts(module), key=lambda graft: graft.order)
    others = sorted((graft for graft in present if not graft.wraps), key=lambda graft: -graft.order)
    for graft in (*(graft for graft in reversed(present) if graft.wraps), *others):
        output = graft.leaving(module, args, kwargs, output)
    return output


def argument(module: nn.Module, args: tuple, kwargs: dict[str, Any], at: int | str) -> Any:
    """The argument at a position or of a name, however the module was called."""
    if isinstance(at, int):
        return args[at] if at < len(args) else list(kwargs.values())[at - len(args)]
    return kwargs[at] if at in kwargs else args[_position(module, at)]


def put_argument(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], at: int | str, x: Any
) -> tuple[tuple, dict[str, Any]]:
    if isinstance(at, int) and at >= len(args):
        at = list(kwargs)[at - len(args)]
    if isinstance(at, str) and at in kwargs:
        return args, {**kwargs, at: x}
    place = at if isinstance(at, int) else _position(module, at)
    return (*args[:place], x, *args[place + 1 :]), kwargs


def _position(module: nn.Module, name: str) -> int:
    # a swapped class may pass on whatever it is called with
    forward = getattr(module, "stock_class", type(module)).forward
    return list(inspect.signature(forward).parameters).index(name) - 1  # without self


def part_of(output: Any, at: int | str) -> Tensor:
    """The stream in what a module returns: a tensor alone, or one of a tuple or of named parts."""
    return output if isinstance(output, Tensor) else output[at]


def put_output(output: Any, at: int | str, y: Tensor) -> Any:
    if isinstance(output, Tensor):
        return y
    if isinstance(output, dict):
        name = at if isinstance(at, str) else list(output)[at]
        return type(output)(**{**output, name: y})
    parts = list(output)
    parts[at] = y  # type: ignore[call-overload]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is one that arithmetic works on, not a quantised one."""
    return weight.is_floating_point() and weight.element_size() > 1 and _is_torchs(type(weight))


def _is_torchs(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torch"


def match(x: Tensor, parameter: Tensor) -> Tensor:
    """x in the parameter's precision, unless autocast takes care of it."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(parameter.dtype)
