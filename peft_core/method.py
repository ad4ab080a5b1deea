"""All that a method's author reads: what a method is (`Method`), and what it asks a model for (`Plan`)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer
from peft_core.errors import PeftError
from peft_core.grafts.attention import KeysValues, Unrotated, keys_refused
from peft_core.grafts.branch import Beside, Branch, Given
from peft_core.grafts.graft import Delta, Graft
from peft_core.grafts.shared import Reference, Shared
from peft_core.grafts.side import Side, Tap
from peft_core.grafts.stand_in import StandIn, refuse_where_changed
from peft_core.grafts.tokens import Pooled, Tokens
from peft_core.kernels.quantised import Packed
from peft_core.parts.input_map import InputMap, MappedInput
from peft_core.places import Where
from peft_core.values import Whole, check_fields


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method's hyper-parameters, and in `install` which graft it puts on which role.

    Args:
        blocks: indices of the blocks it works on; all, and the places outside blocks, where None.
        tower: "image" or "text" of a model with two towers; both where None.
    """

    blocks: Sequence[Whole] | None = None
    tower: str | None = None
    identity: ClassVar[bool] = True
    """The adapted model equals the frozen one at step 0 (`identical` where that depends on the model)."""
    not_mergeable: ClassVar[str | None] = None
    """Why the change cannot be written into stock weights; None where it can."""
    keeps_originals: ClassVar[bool] = True
    """Whether stock weights that the method trains are remembered, for `disabled` and `remove`."""
    grafts: ClassVar[bool | None] = True
    """Whether `adapt` installs it: False where it works beside the model (clip_peft.OpenVocabulary), None where it completes
    another method, and no list has it."""
    renamed: ClassVar[dict[str, str]] = {}
    """Parts of its tensors' names in files of before -> what stands there today; {name} is the adaptation's."""
    head_alone: ClassVar[bool] = False
    """It changes nothing but the head: of every other method, finding nothing to change is a mistake."""
    keeps_head: ClassVar[bool] = False
    """It uses the head that the model was pretrained with, which stays as it is."""
    prepares_each_epoch: ClassVar[bool] = False
    """Whether `prepare` is called before every epoch, not only before the first."""
    moves_statistics: ClassVar[bool] = False
    """Whether running statistics of the stock model's norms move while it trains, and are saved."""
    silences_dropout: ClassVar[bool] = False
    """Whether dropout and drop path of the frozen model are off while it trains."""
    leaves_zeros: ClassVar[bool] = False
    """Merged it leaves heads or channels at zero, which can be cut out (`peft_core.parts.selection.cutting`)."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What it takes besides a frozen model's weights: `features` that go on from block to block, by one `stream` all through a
    tower or by blocks that rise to a picture; a stream that takes more `tokens`, has a `grid` of patches, `positions` that are
    not rotary; a `pair` of image and text towers; layers whose `inputs` are seen; `gates`, that give what a residual step adds; a
    classifier's `head`, a `file` (it is made from one alone), `words` (a tokenizer that learns new ones), a `condition` (before
    each call), `cross` attention, a `quantised` backbone (`quantise(…, keep=True)`)."""
    suits: ClassVar[tuple[str, ...]] = ()
    """Families (`Anatomy.family`) whose models it is made for; any where empty."""
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = ()
    """Settings, and how many parameters they insert on ViT-B/16, as the paper or its code has it."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        from peft_core.registry import name_of

        return name_of(type(self))

    @classmethod
    def of_card(cls, settings: dict[str, Any], format: int) -> dict[str, Any]:
        """Settings as a card of an older format means them, so that an adapter does what it did when it was saved."""
        return settings

    @classmethod
    def examples(cls) -> "Iterable[Method]":
        """Settings small enough for models of two or three blocks, on which the contract is tried (`peft_core.testing`)."""
        return (cls(),)

    def identical(self, anatomy: Anatomy) -> bool:
        """Whether the adapted model of such an anatomy equals the frozen one at step 0."""
        return self.identity

    def for_run(self, mean: Sequence[float], std: Sequence[float], classes: int) -> Self:
        """The settings with what a run knows of its pictures and classes, in place of those that are left open."""
        return self

    def for_tasks(self, tasks: Sequence[str]) -> Self:
        """The settings with the names of a run's tasks, where it has several."""
        return self

    def serve(self, model: nn.Module, task: str) -> None:
        """Told which of these tasks the next forwards are of."""

    def install(self, plan: "Plan") -> None:
        raise NotImplementedError(f"{type(self).__name__} must define install(plan)")

    # ---- what training may call (see `lifecycle`) ------------------------------------------------------------------

    def wants(self, call: str) -> bool:
        """Whether it does something at a call, with these settings ("prepare", "penalty" …)."""
        return getattr(type(self), call) is not getattr(Method, call)

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        """Once before training; the parameters stay those that there are, their values may change."""

    def prepares_again(self, progress: float) -> bool:
        """Whether `prepare` is called once more, after this step."""
        return False

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        """Groups, with `params` and what else the optimiser takes, for parameters that want other settings."""
        return ()

    def forwards(self) -> int:
        """Forwards a step, with draws of their own, whose mean loss trains."""
        return 1

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Added to the loss of each step."""
        return 0.0

    def before_step(self, model: nn.Module) -> None:
        """Before each optimiser step, when gradients are there and clipped: to change them."""

    def after_step(self, model: nn.Module, progress: float) -> None:
        """After each optimiser step, without gradient recording; gradients of the step are still there."""

    def finish(self, model: nn.Module) -> None:
        """When training has ended."""

    def as_trained(self, model: nn.Module) -> Self:
        """The settings with which what was learnt loads again, where training chooses some of them (ranks, steps)."""
        return self


@dataclass
class Plan(Where):
    """Handed to `Method.install`: iterates over places, and takes grafts and names of stock weights to train."""

    grafts: list[tuple[str, str, Graft]] = field(default_factory=list)  # module, slot, graft
    taps: list[tuple[str, Branch | Tap]] = field(default_factory=list)  # module that is read, who reads
    trained: list[str] = field(default_factory=list)  # stock parameters

    def change_weight(self, place: Place, delta: Delta) -> None:
        """W' = delta(W) at a place; PeftError where the change cannot act there, with the reason."""
        self.check(place, delta)
        read = f"{place.module}, whose weight is read without calling it"
        if not place.called and getattr(delta, "dropout", None) is not None:
            raise PeftError(f"dropout cannot act at {read}.")
        if not place.called and delta.reads_input:
            raise PeftError(f"{self.method.name} depends on the input of {read}.")
        delta.called = place.called
        self.grafts.append((place.module, place.role, delta))

    def stand_in(self, place: Place, packed: Packed | None = None) -> StandIn:
        """A place's rows are other numbers while the method acts, packed, and saved with the adapter, or what `put` gives the
        graft later; called before what else changes them. PeftError where another adaptation changes that weight already."""
        refuse_where_changed(self.model.get_submodule(place.module), place.module, self.method.name)
        graft = StandIn(place.rows, self._parameter(place).device)
        if packed is not None:
            graft.put(packed)
        self.check(place, graft)
        graft.called = place.called
        self.grafts.append((place.module, f"{place.role}_stock", graft))
        return graft

    def add_to_output(self, module: str, change: nn.Module, output: int = 0, first: bool = False) -> None:
        """y ← y + change(y) at the module's output, or at one of several; with `first` y is B D H W, and change has D last."""
        branch = Branch(change, read=False)
        branch.output, branch.first = output, (first, first)
        self.grafts.append((module, "output", branch))

    def add_beside(self, place: Place, change: nn.Module) -> None:
        """y ← y + change(x) for what a place's whole module reads and gives.

        Raises:
            PeftError: it is no linear layer, or its owner never calls it.
        """
        if not (place.called and place.rows is None and isinstance(self.model.get_submodule(place.module), nn.Linear)):
            where = f"{place.role} at {place.module}: it is no linear layer that is called"
            raise PeftError(f"{self.method.name} cannot stand beside {where}.")
        self.join(place.module, f"{place.role}_beside", Beside(change))

    def add_behind(self, sublayer: SubLayer, change: nn.Module) -> None:
        """x ← x + y + change(y), where y is what the residual step adds: behind layer scale, gate and drop path."""
        self.add_to_output(self._gate(sublayer), change, sublayer.output, self.stream_of(sublayer).channels_first)

    def add_before(self, sublayer: SubLayer, change: nn.Module) -> None:
        """x ← x + change(x) for what the step's body reads: a change of the weights that read it, into which it merges, or,
        where those cannot be changed, of what the body receives.

        Args:
            change: linear in x when it trains not, with `factors()` that say how (`parts.input_map`).
        """
        places = self.readers(sublayer)
        if places is None:
            self.join(sublayer.body, "before", InputMap(change))
            return
        made: nn.Module | Reference = change
        if len(places) > 1:
            block = "_".join(str(part) for part in (sublayer.tower, sublayer.kind, sublayer.norm) if part is not None)
            made = self.shared(block.replace(".", "_"), lambda: change)
        for place in places:
            self.change_weight(place, MappedInput(made))

    def add_branch(
        self, sublayer: SubLayer, change: nn.Module | Branch, read: str | None = None, normed: bool = False
    ) -> None:
        """x ← x + y + change(x), where y is what the residual step adds; with `normed` change reads norm x, as the step's
        body does, with `read`, a module's path, what that module receives."""
        branch = change if isinstance(change, Branch) else Branch(change, read=True)
        gate, branch.output, first = self._gate(sublayer), sublayer.output, self.stream_of(sublayer).channels_first
        branch.first = first and not normed and read in (None, sublayer.entry), first
        self.grafts.append((gate, f"{sublayer.kind}_branch", branch))
        if normed and sublayer.windowed and not sublayer.post:
            self.grafts.append((sublayer.norm, f"{sublayer.kind}_normed", Given(branch)))
            return
        read = sublayer.into[0] if normed and not sublayer.post else read
        branch.reads = sublayer.arg if read in (None, sublayer.entry) else 0
        self.taps.append((read or sublayer.entry, branch))

    def add_after(self, sublayer: SubLayer, change: nn.Module) -> None:
        """x ← x + y + change(x + y), where y is what the residual step adds: a map of the stream itself, behind the step."""
        self.add_branch(sublayer, Branch(change, read=True, joins=True))

    def _gate(self, sublayer: SubLayer) -> str:
        if sublayer.gate is None:
            why = f"this {self.anatomy.family} weighs and adds it between two modules"
            raise PeftError(f"{self.method.name} cannot join behind {sublayer.body}: {why}.")
        return sublayer.gate

    def extend_keys_values(self, sublayer: SubLayer, make: nn.Module | KeysValues, apart: bool = False) -> None:
        """The step's attention sees further keys and values: those that `make` gives, or a graft of that kind.

        Raises:
            PeftError: it is none, or one that takes none, with the reason.
        """
        reason = keys_refused(self.model.get_submodule(sublayer.body), sublayer.attends)
        if reason is not None:
            raise PeftError(f"{self.method.name} cannot extend {sublayer.body}: {reason}.")
        graft = make if isinstance(make, KeysValues) else KeysValues(make, apart)
        self.grafts.append((sublayer.body, "keys_values", graft))

    def add_side(self, reads: Sequence[str], net: nn.Module, into: str, stream: Stream, adds: bool = False) -> None:
        """`net` gets a list of what the modules `reads` receive and what `into` gives, all detached; its result takes the
        place of what `into` gives, or with `adds` is added to it."""
        taps = [Tap(stream.arg) for _ in reads]
        side = Side(net, taps, adds)
        side.arg, side.output = stream.arg, stream.output
        self.grafts.append((into, "side", side))
        self.taps += zip(reads, taps, strict=True)

    def shared(self, name: str, make: Callable[[], nn.Parameter | Tensor | nn.Module]) -> Reference:
        """What several grafts of this method use: made once for the model, found by calling the reference. A parameter trains
        and is saved, once; a plain tensor does neither, and has to come out the same when it is made again (from a seed)."""
        slot = f"shared_{name}"
        for path, known, graft in self.grafts:
            if (path, known) == ("", slot) and isinstance(graft, Shared):
                return Reference(graft)
        made = Shared(make())
        self.grafts.append(("", slot, made))
        return Reference(made)

    def join(self, module: str, slot: str, graft: Graft) -> None:
        """A graft that acts on what the module receives (`before`) or gives (`after`)."""
        self.grafts.append((module, slot, graft))

    def add_tokens(
        self, blocks: Sequence[str], tokens: nn.Parameter | nn.Module, stream: Stream, dropout: float = 0.0,
        pool: bool = False, count: int | None = None,
    ) -> None:  # fmt: skip
        """Tokens stand in the sequence from the first of these consecutive blocks to the last; with `pool` the model's mean
        over its tokens counts them. They are P D, or what a module makes of what the first block receives, `count` of them."""
        count = len(cast(Tensor, tokens)) if count is None else count
        for path, following in zip(blocks, [*blocks[1:], None], strict=True):
            first = path == blocks[0]
            own, comes = (tokens, None) if first else (None, path)
            graft = Tokens(own, count, stream.prefix, dropout, comes, following)
            graft.arg, graft.output = stream.arg, stream.output
            self.grafts.append((path, "tokens", graft))
            if pool and following is None and stream.pooled is not None:
                norm = None if stream.last_norm is None else self.model.get_submodule(stream.last_norm)
                graft.pooled = f"{path}/pooled"
                self.join(stream.pooled, "pooled", Pooled(graft.pooled, norm, graft.order))
            if stream.rotary:
                steps = (s for s in self.anatomy.sublayers if s.kind == "attn" and s.body.startswith(path + "."))
                self.grafts += [(step.body, "unrotated", Unrotated()) for step in steps]

    def train(self, module: str, *names: str) -> None:
        """Train these stock parameters of a module."""
        self.trained += [f"{module}.{name}" if module else name for name in names]
