"""Where a method works on a model: its chosen blocks, places and residual steps, and what stands there."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer
from peft_core.errors import PeftError, nearest, no_step
from peft_core.grafts.graft import Delta, grafts, is_plain
from peft_core.grafts.weight_changes import changed_weight
from peft_core.kernels.quantised import dense, packed_of

if TYPE_CHECKING:
    from peft_core.method import Method

Width = int | Sequence[int]


@dataclass
class Where:
    """A model as a method sees it."""

    model: nn.Module
    anatomy: Anatomy
    method: "Method"

    def __post_init__(self) -> None:
        method, towers = self.method, self.anatomy.blocks
        if method.suits and self.anatomy.family not in method.suits:
            raise PeftError(
                f"{method.name} works on a {' or a '.join(method.suits)}, not on this {self.anatomy.family}."
            )
        for tower, owner in self.anatomy.unknown.items():
            if method.tower in (None, tower):
                others = " or ".join(f'"{known}"' for known in towers)
                raise PeftError(
                    f"no anatomy for the {tower} tower, a {owner}: adapt the other one alone, tower={others}."
                )
        if method.tower is not None and method.tower not in towers:
            offered = [tower for tower in towers if tower]
            raise PeftError(
                f'this {self.anatomy.family} has no tower "{method.tower}"{nearest(str(method.tower), offered)} '
                f"(it has: {', '.join(offered) or 'a single one, without a name'})."
            )
        for block in method.blocks or ():
            if not 0 <= block < self._deepest():
                raise PeftError(f"blocks names block {block}, but the model's blocks are 0 to {self._deepest() - 1}.")

    def _towers(self) -> list[str | None]:
        return [tower for tower in self.anatomy.blocks if self.method.tower in (None, tower)]

    def depth(self, tower: str | None) -> int:
        return len(self.anatomy.blocks[tower])

    def _deepest(self) -> int:
        return max(self.depth(tower) for tower in self._towers())

    def _chosen(self, block: int | None, tower: str | None) -> bool:
        if self.method.tower not in (None, tower):
            return False
        return self.method.blocks is None or block in self.method.blocks

    def places(
        self, targets: Sequence[str] | None, width: Width | None = None, change: type[Delta] | None = None
    ) -> Iterator[tuple[Place, int]]:
        """The chosen places of these roles (None: the family's default) with their width; 0 where none was asked.

        Raises:
            PeftError: there is none, a width is out of range, or changes of the class `change` cannot act at one.
        """
        found = [place for place in self.anatomy.find(targets) if self._chosen(place.block, place.tower)]
        if not found:
            raise PeftError(f"{self.method.name} finds no place to work on: its targets and blocks exclude each other.")
        for place in found:
            if change is not None:
                self.check(place, change)
            size = 0 if width is None else self.width(width, place.block, place.tower, min(self.shape(place)))
            if width is None or size:
                yield place, size

    def biased(
        self, targets: Sequence[str] | None, default: Sequence[str], change: type[Delta] | None = None
    ) -> Iterator[Place]:
        """As `places`, for changes that reach the bias too: by default all of these roles that there are, but for weights
        whose bias lies outside their module (EVA's fused qkv).

        Raises:
            PeftError: such a one was asked for.
        """
        known = self.anatomy.roles()
        present = [role for role in default if role in known or (role == "qkv" and "q" in known)]
        for place, _ in self.places(present if targets is None else targets):
            if not place.called and place.bias is None:
                if targets is None:
                    continue
                raise PeftError(
                    f"{self.method.name} cannot change {place.module}, whose bias lies outside it: leave {place.role} "
                    "out of targets."
                )
            if change is not None:
                self.check(place, change)
            yield place

    def readers(self, sublayer: SubLayer) -> list[Place] | None:
        """The whole weights that read what the step's body reads, one a module; None where a reader cannot be changed with
        its bias, so that a change of what they read has to stand before the body."""
        whole = {p.module: p for p in reversed(self.anatomy.places) if p.module in sublayer.into}
        found: list[Place] = []
        for path in sublayer.into:
            module = self.model.get_submodule(path)
            place = whole.get(path) or Place("input", path, sublayer.block, tower=sublayer.tower)
            weight = module._parameters.get(place.weight)
            if weight is None or weight.dim() != 2 or not is_plain(weight) or not place.called:
                return None
            found.append(dataclasses.replace(place, role="input", rows=None))
        return found

    def towers(self) -> Iterator[tuple[str | None, list[str]]]:
        """The chosen towers with the paths of their blocks."""
        return ((tower, self.anatomy.blocks[tower]) for tower in self._towers())

    def sublayers(
        self, kinds: Iterable[str], width: Width, limit: int | None = None
    ) -> Iterator[tuple[SubLayer, int, int]]:
        """The chosen residual steps of these kinds, the method's width there (up to `limit`, or D), and the stream's width D;
        PeftError where nothing is known of them."""
        kinds = tuple(kinds)
        for kind in ("attn", "mlp"):  # what every block has; cross attention only some
            known = {sublayer.tower for sublayer in self.anatomy.sublayers if sublayer.kind == kind}
            if self.anatomy.single and kind == "attn" and "mlp" in kinds:
                continue
            if kind in kinds and (unknown := [tower for tower in self._towers() if tower not in known]):
                alone = not any(sublayer.tower == unknown[0] for sublayer in self.anatomy.sublayers)
                raise no_step(self.method.name, self.anatomy.family, kind, alone, unknown[0], known)
        for sublayer in self.anatomy.sublayers:
            if sublayer.kind in kinds and self._chosen(sublayer.block, sublayer.tower):
                dim = self.stream_of(sublayer).width
                size = self.width(width, sublayer.block, sublayer.tower, dim if limit is None else limit)
                if size:
                    yield sublayer, size, dim

    def chosen_blocks(
        self, width: Width, limit: int, *towers: str | None
    ) -> Iterator[tuple[str | None, int, str, int]]:
        """Tower, index, path and width of every chosen block, of these towers alone where they are named."""
        for tower in towers or self._towers():
            if not self.anatomy.blocks[tower]:
                raise self._no_stream()
            for index, path in enumerate(self.anatomy.blocks[tower]):
                if self._chosen(index, tower) and (size := self.width(width, index, tower, limit)):
                    yield tower, index, path, size

    def runs(self) -> Iterator[tuple[str | None, list[str]]]:
        """The chosen towers with the paths of their blocks from the first chosen one to the last, those between included."""
        for tower, paths in self.towers():
            if chosen := [index for _, index, *_ in self.chosen_blocks(1, 1, tower)]:
                yield tower, paths[chosen[0] : chosen[-1] + 1]

    def stock_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of every stock module that stands in a chosen block or, without `blocks`, outside all of them."""
        for path, module in self.model.named_modules():
            if "peft" not in path.split(".") and self._chosen(*self.block_at(path)):
                yield path, module

    def stock_parameters(self) -> Iterator[tuple[str, str]]:
        """Module and name of every stock parameter that stands in a chosen block or, without `blocks`, outside all of them."""
        for key, _ in self.model.named_parameters():
            if "peft" not in key.split(".") and self._chosen(*self.block_at(key)):
                module, _, name = key.rpartition(".")
                yield module, name

    def block_at(self, path: str) -> tuple[int | None, str | None]:
        """The block and the tower that a module or parameter belongs to."""
        parts = path.split(".")
        for n in range(len(parts), 0, -1):
            if (found := self._block_of.get(".".join(parts[:n]))) is not None:
                return found
        return None, self.anatomy.tower_of(path)

    @cached_property
    def _block_of(self) -> dict[str, tuple[int, str | None]]:
        towers = self.anatomy.blocks.items()
        return {path: (index, tower) for tower, paths in towers for index, path in enumerate(paths)}

    def width(self, width: Width, block: int | None, tower: str | None, limit: int) -> int:
        """A width at a block: the same everywhere, or one a block where 0 means absent."""
        if isinstance(width, int):
            value, listed = width, False
        else:
            if len(width) != self.depth(tower):
                raise PeftError(
                    f"{self.method.name} got {len(width)} widths, but the model has {self.depth(tower)} blocks."
                )
            if block is None:
                return 0
            value, listed = width[block], True
        if value < (0 if listed else 1):
            least = "0 (absent) or more" if listed else "1 or more"
            raise PeftError(f"{self.method.name} got the width {value}: it must be {least}.")
        if value > limit:
            raise PeftError(f"{self.method.name} got the width {value}, above the layer's width {limit}.")
        return value

    def stock(self, place: Place) -> Tensor:
        """The place's weight, all rows of it; where it is quantised, its numbers in a tensor of their own."""
        module = self.model.get_submodule(place.module)
        packed, weight = packed_of(module), self._parameter(place)
        if (
            packed is None
            and isinstance(module, nn.Linear)
            and weight.shape != (module.out_features, module.in_features)
        ):
            # packed in a way that is not known: its shape and device alone
            return torch.zeros((), device=weight.device).expand(module.out_features, module.in_features)
        return weight if packed is None else dense(packed, torch.float32)

    def _parameter(self, place: Place) -> Tensor:
        return self.model.get_submodule(place.module)._parameters[place.weight]  # type: ignore[return-value]

    def current(self, place: Place) -> Tensor:
        """The place's own rows of the weight as the adaptations already installed make it."""
        module = self.model.get_submodule(place.module)
        weight = changed_weight(self.stock(place).detach(), list(grafts(module, Delta))).detach()
        return weight if place.rows is None else weight[slice(*place.rows)]

    def shape(self, place: Place) -> tuple[int, int]:
        """(out, in) of the place; a convolution counts in · kh · kw."""
        weight, module = self._parameter(place), self.model.get_submodule(place.module)
        # a quantised linear may hold its weight packed
        out, inner = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else (
            weight.shape[0], weight[0].numel()
        )  # fmt: skip
        return (out if place.rows is None else place.rows[1] - place.rows[0]), inner

    def key_width(self, sublayer: SubLayer) -> int:
        """The width of an attention's keys, all heads together."""
        return self._width_of(("k", "cross_k"), sublayer)

    def head_width(self, sublayer: SubLayer) -> int:
        """The width of one of an attention's heads."""
        named, modules = (
            ("num_heads", "heads", "num_attention_heads"),
            self.model.get_submodule(sublayer.body).modules(),
        )
        counts: Any = [getattr(m, name) for m in modules for name in named if isinstance(getattr(m, name, None), int)]
        return self._width_of(("q", "cross_q"), sublayer) // counts[0]

    def _width_of(self, roles: Sequence[str], sublayer: SubLayer) -> int:
        found = (p for p in self.anatomy.places if p.role in roles and f"{p.module}.".startswith(f"{sublayer.body}."))
        return self.shape(next(found))[0]

    def stream_of(self, sublayer: SubLayer) -> Stream:
        name = sublayer.tower if sublayer.stream is None else sublayer.stream
        return self.anatomy.streams[name]

    def stream(self, tower: str | None) -> Stream:
        """The stream of a tower.

        Raises:
            PeftError: its width changes from block to block.
        """
        if tower not in self.anatomy.streams:
            raise self._no_stream()
        return self.anatomy.streams[tower]

    def _no_stream(self) -> PeftError:
        return PeftError(f"{self.method.name} needs one stream all through, which this {self.anatomy.family} has not.")

    def options_at(self, module: str) -> dict[str, Any]:
        """device and dtype (at least float32) of new parameters at a module."""
        first = next(self.model.get_submodule(module).parameters(), None)
        first = next(self.model.parameters()) if first is None else first
        return dict(device=first.device, dtype=torch.promote_types(first.dtype, torch.float32))

    def token_stream(self, tower: str | None) -> Stream:
        """The stream of a tower, whose blocks take further tokens.

        Raises:
            PeftError: they take none, with the reason.
        """
        streams = [s for name, s in self.anatomy.streams.items() if name == tower] or list(
            self.anatomy.streams.values()
        )
        if not streams:
            raise self._no_stream()
        if streams[0].tokens_refused is not None:
            part = "this" if tower is None else f"the {tower} tower of this"
            raise PeftError(f"{part} {self.anatomy.family} cannot take extra tokens: {streams[0].tokens_refused}.")
        return streams[0]

    def check(self, place: Place, change: Delta | type[Delta]) -> None:
        """Raises PeftError unless this change (or changes of this class) can act at a place."""
        reason = change.accepts(self.model.get_submodule(place.module), self._parameter(place), place.rows)
        if reason is not None:
            raise PeftError(f"{self.method.name} cannot change {place.role} at {place.module}: {reason}.")
