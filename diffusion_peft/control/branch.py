"""What every control method puts at the UNet's root: it holds the condition and acts when the UNet is called."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.calls import root, state
from peft_core.grafts.graft import Call, Graft, argument

Condition = Mapping[str, Tensor]
_ARGUMENTS = ("sample", "timestep", "encoder_hidden_states")


class Given:
    """What a control was given: a condition, and after how many calls of the UNet it ends (never where None)."""

    def __init__(self, condition: Condition | None, calls: int | None) -> None:
        self.condition, self.calls = condition, calls


class _Use:
    """One thread's use of a control: what holds for it, how many calls it made, and what depends on the condition alone."""

    def __init__(self, given: Given, own: bool) -> None:
        self.given, self.own, self.made = given, own, 0
        self.features: tuple[int, Any] | None = None


class _Uses(threading.local):
    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Control, _Use] = weakref.WeakKeyDictionary()


_USES = _Uses()
_NOTHING = Given(None, None)
_HANDED = "_peft_handed"
"""Attribute of the text's tensor under which the root hands values down to the blocks."""


class Named(Graft):
    """Knows its adaptation's name, under which it leaves values in the state of a forward, and finds them."""

    key: str = ""

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = adaptation


class Control(Named, Call):
    """The root of a control method. Without a condition the UNet is the base.

    A condition is a mapping of tensors whose first dimension is the pictures of a batch: `picture` B C H W in [0, 1],
    `latents` B C h w of it as the denoiser has them, `features` B N D of an image tower, or `boxes` B N 4, `phrases` B N D and
    `present` B N. Where the UNet is called with twice as many rows (classifier-free guidance, the negative half first), `guided`
    says what both halves get. A thread that was given a condition of its own keeps to it; others take the last one that was
    given anywhere.
    """

    wants: ClassVar[tuple[str, ...]] = ("picture",)
    stream: ClassVar[str] = "sample"
    """The denoiser's argument for what is noisy."""
    size: tuple[int, int] | None = None
    """Channels of the picture, and its pixels a latent along each side."""
    given: Given
    partners: list[Any]
    """Grafts elsewhere in the UNet that this one feeds; references, not submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["partners"] = []
        self.__dict__["given"] = _NOTHING

    def give(self, condition: Condition | None, calls: int | None) -> None:
        self.__dict__["given"] = given = Given(condition, calls)
        _USES.of[self] = _Use(given, own=True)

    def use(self) -> _Use:
        """This thread's."""
        found = _USES.of.get(self)
        if found is None or (not found.own and found.given is not self.given):
            found = _USES.of[self] = _Use(self.given, own=False)
        return found

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        use = self.use()
        condition, calls = use.given.condition, use.given.calls
        if condition is None or (calls is not None and use.made >= calls):
            return args, kwargs
        use.made += 1
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        x = given[self.stream]
        self.check(x, condition)
        if torch.is_grad_enabled():
            use.features = None
        known = use.features
        with self.precision(module, x):
            features = known[1] if known is not None and known[0] == len(x) else self.prepared(self.rows(condition, x))
        if not torch.is_grad_enabled():
            use.features = (len(x), features)
        with self.precision(module, x):
            joined = self.join(features, given)
        if "encoder_hidden_states" in joined and len(args) > _ARGUMENTS.index("encoder_hidden_states"):
            place = _ARGUMENTS.index("encoder_hidden_states")
            args = (*args[:place], joined.pop("encoder_hidden_states"), *args[place + 1 :])
        return args, kwargs | joined

    def hand_down(self, given: dict[str, Any], value: Any) -> dict[str, Any]:
        """The UNet's arguments where its blocks find a value with `handed`, when they are run again for their gradients too:
        it travels on the text, which every block is called with."""
        state()[self.key, "handed"] = value
        text = given["encoder_hidden_states"]
        tagged = text.view_as(text)
        setattr(tagged, _HANDED, getattr(text, _HANDED, {}) | {self.key: value})
        return {"encoder_hidden_states": tagged}

    def check(self, x: Tensor, condition: Condition) -> None:
        """Raises PeftError: a picture of another size or number of channels than latents x need."""
        if self.size is None or "picture" not in condition:
            return
        channels, shrink = self.size
        have, need = tuple(condition["picture"].shape[1:]), (channels, x.shape[2] * shrink, x.shape[3] * shrink)
        if have != need:
            one, other = (" × ".join(map(str, shape)) for shape in (have, need))
            at = f"latents of {x.shape[2]} × {x.shape[3]}"
            raise PeftError(f"the condition is {one} (channels, height, width); {at} need {other}.")

    def precision(self, unet: Any, x: Tensor) -> AbstractContextManager:
        """The branch's parameters are float32, the base may be in half precision."""
        dtype = next(unet.conv_in.parameters()).dtype
        wanted = dtype != torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return torch.autocast(x.device.type, dtype) if wanted else nullcontext()

    def rows(self, condition: Condition, x: Tensor) -> dict[str, Tensor]:
        """The condition for a batch of latents, where these are.

        Raises:
            PeftError: the condition's rows do not fit it.
        """
        condition = {key: value.to(x.device) for key, value in condition.items()}
        have, count = len(next(iter(condition.values()))), len(x)
        if count == have:
            return condition
        if count % (2 * have):
            raise PeftError(f"the condition has {have} pictures, which do not fit a batch of {count}.")
        return self.guided({key: value.repeat_interleave(count // (2 * have), 0) for key, value in condition.items()})

    def guided(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """Negative and positive half; the same condition for both unless a method says otherwise."""
        return {key: torch.cat([value, value]) for key, value in condition.items()}

    def prepared(self, condition: dict[str, Tensor]) -> Any:
        """What depends on the condition alone; in sampling it is computed once for all steps."""
        return condition

    def join(self, prepared: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments that the UNet is called with besides, by name; `given` are those that it was called with."""
        raise NotImplementedError(f"{type(self).__name__} must define join(prepared, given)")

    def effect(self) -> float:
        """How far the branch is open: 0 where its output is exactly zero (gates, zero convolutions)."""
        return 1.0


class Handed(Named, Call):
    """At a block or an attention: what the root handed down is at hand for the grafts within (`handed`)."""

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        text = argument(module, args, kwargs, "encoder_hidden_states")
        value = getattr(text, _HANDED, {}).get(self.key)
        if value is None and root() is not None:  # what moves tensors between devices loses what they carry
            value = state().get((self.key, "handed"))
        state()[self.key, "here"] = value
        return args, kwargs


def handed(key: str) -> Any:
    """What the adaptation's root handed down to the block that runs; None without a condition."""
    return state().get((key, "here"))


def add_residuals(given: dict[str, Any], key: str, new: list[Tensor]) -> list[Tensor]:
    """The residuals of several branches are summed."""
    old = given.get(key)
    return list(new) if old is None else [a + b for a, b in zip(old, new, strict=True)]


def controls_of(unet: nn.Module) -> Iterator[tuple[str, Control]]:
    """(adaptation, control) of every control method on a UNet."""
    slots = unet._modules.get("peft")
    for name, slot in slots.items() if slots is not None else ():  # type: ignore[operator]
        for graft in slot.children():
            if isinstance(graft, Control):
                yield name, graft


def set_condition(
    unet: nn.Module, condition: Condition | None, name: str | None = None, calls: int | None = None
) -> None:
    """Gives the control methods of a UNet (or the one called `name`) a condition, for all calls until the next one.

    It holds for the thread that gives it, and for every thread that was given none itself.

    Args:
        condition: see `Control`; None turns the control off.
        calls: of the UNet after which the control is off (scheduled sampling); never where None.

    Raises:
        PeftError: there is no such control, or the condition is not of its kind.
    """
    found = [control for adaptation, control in controls_of(unet) if name in (None, adaptation)]
    if not found:
        raise PeftError("this UNet has no control" + (f' "{name}".' if name else ': adapt(unet, "controlnet") first.'))
    for control in found:
        missing = [key for key in control.wants if condition is not None and key not in condition]
        if missing:
            raise PeftError(f"the condition lacks {', '.join(missing)}: this method takes {', '.join(control.wants)}.")
        control.give(None if condition is None else {key: condition[key] for key in control.wants}, calls)
