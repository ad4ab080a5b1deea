"""Several adapted models of one backbone on the same input: what is frozen in them is run once, each goes on from where its own
change begins, and side networks read one frozen pass, those of one form by one product."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import Record, slots_of
from peft_core.errors import PeftError
from peft_core.grafts.around import Surrounded
from peft_core.grafts.calls import closing, opening
from peft_core.grafts.graft import entering, grafts, leaving
from peft_core.grafts.side import Side
from peft_core.kernels import rebuild


class Together:
    """`together(x)` gives what each model gives for x, `[model(x) for model in models]`.

    A block whose inside is stock is run once for all models that hand it the frozen model's features; what joins at its ends
    acts for each of them. Models of families that cannot be run from a block on, and such as act on their own input, run whole.

    The models are for inference from here on: a frozen weight that equals another model's becomes the same tensor, so that they
    hold the backbone once, and layers of side networks that read the same are copied into one. A side network's class says how
    with `form()`, which is what they must have alike, and `together(nets)`, which gives what each makes, B n D, of features and
    of how many tokens the rest of the model reads (None: all).

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
        self._besides = _beside(self._one)

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
        made = [row for beside in self._besides for row in beside.run(x, known)]
        tokens = {id(one): each for one, each in made}
        return [one.finished(x, tokens[id(one)]) if id(one) in tokens else one.run(x, known) for one in self._one]


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

    def features(self, x: Tensor, known: dict[int, Tensor]) -> list[Tensor]:
        """What the frozen model's blocks receive, and what the last one gives."""
        embed: Any = self.anatomy.embed
        h = _known(known, 0, lambda: embed(self.model, x))
        found = [h]
        for number, block in enumerate(self.blocks, 1):
            h = _known(known, number, lambda h=h, block=block: block.forward(h))
            found.append(h)
        return found

    def finished(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The model's output from what its blocks give."""
        finish: Any = self.anatomy.finish
        opening(self.model, (x,))
        try:
            return finish(self.model, tokens)
        finally:
            closing(self.model, (x,), None)

    def side(self) -> Side | None:
        """The side network behind the last block, where it alone acts on the stream."""
        if self.whole or not self.embeds or not all(self.clean):
            return None
        *others, last = (list(grafts(block)) for block in self.blocks)
        alone = not any(others) and len(last) == 1 and isinstance(last[0], Side) and not last[0].adds
        return last[0] if alone else None

    def reads(self, side: Side) -> list[int] | None:
        """Which blocks' input a side network reads; None where it reads something else."""
        at = {
            key: n
            for n, block in enumerate(self.blocks)
            for key, arg in block.__dict__.get("peft_taps", ())
            if arg == 0
        }
        return [at[tap.key] for tap in side.taps] if all(tap.key in at for tap in side.taps) else None

    @torch.no_grad()
    def reads_the_first_alone(self) -> bool:
        """Whether what follows the blocks reads their first token and no other."""
        (stream,) = self.anatomy.streams.values()
        like = next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())
        some = torch.arange(8 * stream.width).to(like).sin().view(1, 8, -1)
        rest = torch.arange(1, 8, device=some.device)
        others = some.index_fill(1, rest, torch.nan)  # which whoever reads them cannot hide
        made = self.finished(some, others)
        return torch.equal(made, self.finished(some, some)) and torch.equal(made, self.finished(some, some[:, :1]))

    @staticmethod
    def _step(number: int, block: Any, h: Tensor, known: dict[int, Tensor]) -> tuple[Tensor, bool]:
        """What a stock block gives with what joins at its ends, and whether it is still the frozen model's."""
        args, kwargs = entering(block, (h,), {}) if entering in block._forward_pre_hooks.values() else ((h,), {})
        same = len(args) == 1 and args[0] is h and not kwargs
        y = _known(known, number + 1, lambda: block.forward(h)) if same else block.forward(*args, **kwargs)
        given = leaving(block, args, kwargs, y) if leaving in block._forward_hooks.values() else y
        return given, same and given is y


class _Beside:
    """Models whose side networks read the same, by one product."""

    def __init__(self, members: Sequence[tuple["_One", Side]], reads: Sequence[int]) -> None:
        self.members, self.reads = members, reads
        nets: list[Any] = [side.net for _, side in members]
        self.net = type(nets[0]).together(nets)
        self.tokens = 1 if all(one.reads_the_first_alone() for one, _ in members) else None

    def run(self, x: Tensor, known: dict[int, Tensor]) -> Iterable[tuple["_One", Tensor]]:
        """Each model with what stands in place of what its blocks give; nothing where one's side network does not act."""
        if torch.is_autocast_enabled(x.device.type) or any(one.side() is not side for one, side in self.members):
            return ()
        features = self.members[0][0].features(x, known)
        made = self.net([*(features[number] for number in self.reads), features[-1]], self.tokens)
        return [(one, each.to(features[-1].dtype)) for (one, _), each in zip(self.members, made, strict=True)]


def _beside(ones: Sequence[_One]) -> list[_Beside]:
    """Those of the models' side networks that have a form in common."""
    alike: dict[Any, list[tuple[_One, Side]]] = {}
    for one in ones:
        side = one.side()
        reads = None if side is None else one.reads(side)
        if side is not None and reads is not None and hasattr(side.net, "together"):
            form: Any = side.net.form()  # type: ignore[operator]
            alike.setdefault((type(side.net), form, tuple(reads)), []).append((one, side))
    return [_Beside(members, reads) for (*_, reads), members in alike.items() if len(members) > 1]


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
