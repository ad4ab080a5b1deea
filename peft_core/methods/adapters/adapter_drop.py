from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from peft_core.attach import record_of
from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft
from peft_core.grafts.shared import Shared
from peft_core.lifecycle import memory, own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.registry import make_method
from peft_core.values import Seed, Whole

CALLS = ("prepare", "parameter_groups", "penalty", "before_step", "after_step", "finish", "as_trained")


@dataclass(frozen=True, kw_only=True)
class AdapterDrop(Method):
    """AdapterDrop: another method's parts, of which the first n blocks go without in a training step, n drawn anew each step.

    Rücklé et al., "AdapterDrop: On the Efficiency of Adapters in Transformers", EMNLP 2021. n is uniform over 0 … `most`, 10 of
    12 blocks where None (depth − 2), as in adapter-hub/adapters' notebook (88f18eb); below the first adapted block nothing runs
    backward then. Used afterwards with all parts, or without those of the blocks `skip` (also `without(model, blocks)` for a
    moment). The draw is a function of the seed and the step, so a resumed run goes on with the same. Works with every method
    whose parts act each in its own block and that wants nothing else of training: adapters, LoRA, (IA)³, prefixes …, not
    prompts or side networks, which run through blocks. The parameters are the other method's: by default 156,768 on ViT-B/16.

    Args:
        of: the other method's name.
        settings: its settings, but for blocks and tower, which stand here.
        most: the largest n.
        skip: blocks that go without outside of training.
        seed: of the draws.
    """

    of: str = "adapter"
    settings: dict[str, Any] | None = None
    most: Whole | None = None
    skip: Sequence[Whole] = ()
    seed: Seed = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 156_768), ({"of": "lora", "settings": {"rank": 8}}, 294_912),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(settings={"bottleneck": 4}, most=0)
        return small, replace(small, of="lora", settings={"rank": 2, "targets": ["attn", "mlp"]})

    def __post_init__(self) -> None:
        super().__post_init__()
        if both := sorted({"blocks", "tower"} & set(self.settings or {})):
            raise PeftError(f"adapter_drop takes {both[0]} itself, not among the settings of {self.of}.")
        inner = self.inner
        if wants := [call for call in CALLS if inner.wants(call)] or (["forwards"] if inner.forwards() > 1 else []):
            raise PeftError(
                f"adapter_drop cannot hold {self.of}, which wants more of training than a forward ({wants[0]})."
            )
        for fact in ("identity", "not_mergeable", "keeps_originals", "moves_statistics", "silences_dropout", "keeps_head",
                     "needs", "suits"):  # fmt: skip
            object.__setattr__(self, fact, getattr(inner, fact))
        if self.skip and not inner.not_mergeable:
            object.__setattr__(self, "not_mergeable", "the blocks it skips would be merged too.")

    @property
    def inner(self) -> Method:
        return make_method(self.of, **(self.settings or {}))

    def install(self, plan: Plan) -> None:
        self.inner.install(plan)
        depth = max(plan.depth(tower) for tower, _ in plan.towers())
        if beyond := [block for block in (*self.skip, (self.most or 1) - 1) if block >= depth]:
            raise PeftError(f"adapter_drop names block {beyond[0]}, but the model's blocks are 0 to {depth - 1}.")
        root, kept = Dropping(self.skip, self.drawn(0, depth), depth), 0
        for path, slot, graft in plan.grafts:
            block, tower = plan.block_at(path)
            if isinstance(graft, Shared):
                continue
            if not graft.alone:
                raise PeftError(
                    f"adapter_drop cannot leave out {slot} at {path}, which {self.of} needs in other blocks: choose a method "
                    "whose parts act each in its own block."
                )
            if block is not None:
                # of a shorter tower as large a share goes without
                often = self.largest(depth) + 1, self.largest(plan.depth(tower)) + 1
                graft.left_out, kept = LeftOut(root, block, *often), kept + 1
        if not kept or plan.trained:
            raise PeftError(f"adapter_drop drops what stands in blocks, and {self.of} has other parts alone or also.")
        plan.join("", "dropping", root)

    def largest(self, depth: int) -> int:
        return max(0, depth - 2) if self.most is None else min(self.most, depth)

    def drawn(self, step: int, depth: int) -> int:
        return int(torch.randint(self.largest(depth) + 1, (), generator=chance(self.seed, step), device="cpu"))

    def after_step(self, model: nn.Module, progress: float) -> None:
        kept = memory(model, self)
        (root,) = own_grafts(model, self, Dropping)
        kept["step"] = kept.get("step", 0) + 1
        kept["dropped"] = self.drawn(kept["step"], root.depth)


class Dropping(Graft):
    """On the model itself: how many of the first blocks go without in this step."""

    def __init__(self, skip: Sequence[int], first: int, depth: int) -> None:
        super().__init__()
        self.skip, self.first, self.dropped, self.depth, self.name = tuple(skip), first, first, depth, ""

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.name = adaptation

    def entering(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.training:
            self.dropped = record_of(module).adaptations[self.name].memory.get("dropped", self.first)
        return args, kwargs


class LeftOut:
    """Whether a graft of a block is left out now; no module, so that it adds no key."""

    def __init__(self, root: Dropping, block: int, of: int, here: int) -> None:
        self.root, self.block, self.of, self.here = root, block, of, here

    def __call__(self) -> bool:
        if not self.root.training:
            return self.block in self.root.skip
        return self.block < self.root.dropped * self.here // self.of


@contextmanager
def without(model: nn.Module, blocks: Iterable[int]) -> Iterator[None]:
    """Within the block, outside of training, these blocks of the model's adapter_drop go without."""
    roots = [module for module in model.modules() if isinstance(module, Dropping)]
    if not roots:
        raise PeftError("this model has no adaptation by adapter_drop whose blocks could go without.")
    before = [root.skip for root in roots]
    try:
        for root in roots:
            root.skip = tuple(blocks)
        yield
    finally:
        for root, skip in zip(roots, before, strict=True):
            root.skip = skip
