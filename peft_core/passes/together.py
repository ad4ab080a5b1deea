"""Several adapted models of one backbone on the same input: what is frozen in them is run once, each goes on from where its own
change begins, and side networks read one frozen pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import Record, slots_of
from peft_core.errors import PeftError
from peft_core.grafts.around import Surrounded
from peft_core.grafts.calls import closing, opening
from peft_core.grafts.graft import entering, leaving
from peft_core.kernels import rebuild


class Together:
    """`together(x)` gives what each model gives for x, `[model(x) for model in models]`.

    A block whose inside is stock is run once for all models that hand it the frozen model's features; what joins at its ends
    acts for each of them. Models of families that cannot be run from a block on, and such as act on their own input, run whole.

    The models are for inference from here on: a frozen weight that equals another model's becomes the same tensor, so that they
    hold the backbone once.

    Args:
        models: adapted models of one backbone in eval mode, with heads of their own; an iterator may make each in its turn.

    Raises:
        PeftError: they are no models of one architecture, or one is training.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self.models: list[nn.Module] = []
        self._stock: dict[str, Tensor] = {}
        self._one: list[_One] = []
        for model in models:
            if model.training:
                raise PeftError("models run together for inference alone: call eval() on each first.")
            self._share(model)
            one = _One(model, self._stock)
            if self._one and one.alike != self._one[0].alike:
                raise PeftError(
                    f"models that run together stand on one backbone: {one.alike} is another than {self._one[0].alike}."
                )
            self.models.append(model)
            self._one.append(one)
        if not self._one:
            raise PeftError("there is no model to run: give one at least.")

    def _share(self, model: nn.Module) -> None:
        """Frozen tensors that equal those of a model before become the same ones."""
        record: Record = model.__dict__.get("_peft_record") or Record()
        trained = {key for adaptation in record.adaptations.values() for key in adaptation.trained}
        for path, module in model.named_modules():
            if "peft" in path.split("."):
                continue
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    key = f"{path}.{name}" if path else name
                    if tensor is None or key in trained or tensor.requires_grad:
                        continue
                    stock: Any = self._stock.setdefault(key, tensor)
                    if stock is not tensor and _equal(stock, tensor):
                        tensors[name] = stock

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        known: dict[int, Tensor] = {}
        return [one.run(x, known) for one in self._one]


class _One:
    """One of the models: which of its parts are stock."""

    def __init__(self, model: nn.Module, stock: dict[str, Tensor]) -> None:
        self.model, anatomy = model, anatomy_of(model)
        self.anatomy = anatomy
        self.alike = f"a {anatomy.family} of {sum(map(len, anatomy.blocks.values()))} blocks"
        acting = any(g.acts_before() or g.acts_after() for slots in slots_of(model).values() for g in slots.values())
        self.whole = anatomy.embed is None or anatomy.finish is None or acting or _hooked(model)
        if self.whole:
            return
        (paths,) = anatomy.blocks.values()
        self.blocks = [model.get_submodule(path) for path in paths]
        self.clean = [_is_stock(path, block, stock) for path, block in zip(paths, self.blocks, strict=True)]
        later = tuple(f"{path}." for path in (*paths, *anatomy.heads, *anatomy.tail, "peft"))
        before = [(path, m) for path, m in model.named_modules() if path and not f"{path}.".startswith(later)]
        self.embeds = _holds(stock, "", model) and all(_holds(stock, *each) and _untouched(each[1]) for each in before)

    def run(self, x: Tensor, known: dict[int, Tensor]) -> Tensor:
        """The model's output; `known` has what the frozen model's blocks receive, as far as it was run for x."""
        if self.whole:
            return self.model(x)
        embed: Any = self.anatomy.embed
        finish: Any = self.anatomy.finish
        opening(self.model, (x,))
        try:
            frozen = self.embeds
            h = _known(known, 0, lambda: embed(self.model, x)) if frozen else embed(self.model, x)
            for number, block in enumerate(self.blocks):
                h, frozen = self._step(number, block, h, known) if frozen and self.clean[number] else (block(h), False)
            return finish(self.model, h)
        finally:
            closing(self.model, (x,), None)

    @staticmethod
    def _step(number: int, block: Any, h: Tensor, known: dict[int, Tensor]) -> tuple[Tensor, bool]:
        """What a stock block gives with what joins at its ends, and whether it is still the frozen model's."""
        args, kwargs = entering(block, (h,), {}) if entering in block._forward_pre_hooks.values() else ((h,), {})
        same = len(args) == 1 and args[0] is h and not kwargs
        y = _known(known, number + 1, lambda: block.forward(h)) if same else block.forward(*args, **kwargs)
        given = leaving(block, args, kwargs, y) if leaving in block._forward_hooks.values() else y
        return given, same and given is y


def _known(known: dict[int, Tensor], number: int, make: Callable[[], Tensor]) -> Tensor:
    """The features of that number, as a tensor of its own on the same memory: what goes with it is one model's."""
    if number not in known:
        known[number] = make()
    return known[number].view_as(known[number])


def _is_stock(path: str, block: nn.Module, stock: dict[str, Tensor]) -> bool:
    """Whether nothing within a block is changed, read or hooked; at its own ends grafts may stand."""
    inside = [(name, m) for name, m in block.named_modules() if name and name.split(".")[0] != "peft"]
    own = _holds(stock, path, block) and not _hooked(block) and not isinstance(block, Surrounded)
    return own and all(_untouched(m) and _holds(stock, f"{path}.{name}", m) for name, m in inside)


def _holds(stock: dict[str, Tensor], path: str, module: nn.Module) -> bool:
    """Whether a module's own tensors are those of the frozen model."""
    tensors = {**module._parameters, **module._buffers}
    return all(t is None or stock.get(f"{path}.{name}" if path else name) is t for name, t in tensors.items())


def _untouched(module: nn.Module) -> bool:
    return not slots_of(module) and "peft_taps" not in module.__dict__ and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    """Whether somebody else's hooks act on a module."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook not in (opening, closing, entering, leaving, rebuild.tag) for hook in hooks)


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = type(one) is type(other) and one.shape == other.shape and one.dtype == other.dtype
    return alike and one.device == other.device and torch.equal(one, other)
