import dataclasses
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.parts.lowrank import LowRank
from peft_core.parts.prefixes import add_prefixes
from peft_core.values import Count, Positive

EDGES = (1 / 6, 1 / 2, 5 / 6)
"""Where the four groups of a spindle end: of twelve blocks 2, 4, 4 and 2."""


@dataclass(frozen=True, kw_only=True)
class S4(Method):
    """S4: blocks in four groups, few at the ends and many in the middle, each group with strategies of its own.

    Chen, Zhang, Shi, Li, Smola, Yang, "Parameter-Efficient Fine-Tuning Design Spaces", ICLR 2023, whose search ends at this
    pattern: a spindle of groups, all of them tuned with a like budget a block, G1 adapters and LoRA, G2 adapters and prefixes,
    G3 adapters, prefixes and biases, G4 prefixes, biases and LoRA. a: Up(relu(Down y)) behind the MLP, Down Kaiming-uniform,
    Up zero; l: B A on q and v, s = 1; p: P_k, P_v ~ N(0, 1) at every attention; b: the block's biases. **Sizes and the blocks
    of each group are this package's**: what is public of the paper does not say them, and the authors' repository
    (amazon-science/peft-design-spaces e3e8cee) has UniPELT's setting alone, 10 tokens, D/16 and rank 8, the defaults here.
    Prefixes take part in the softmax: not identical at step 0. 1,048,032 parameters on ViT-B/16.

    Args:
        groups: of each group its strategies, of the letters a, l, p and b.
        bottleneck: of adapters.
        rank: of LoRA.
        tokens: of prefixes.
        scale: s of LoRA.
    """

    groups: Sequence[str] = ("al", "ap", "apb", "pbl")
    bottleneck: Count = 48
    rank: Count = 8
    tokens: Count = 10
    scale: Positive = 1.0
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "prefixes and bottlenecks are no change of weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_048_032),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.groups) != len(EDGES) + 1 or set("".join(self.groups)) - set("alpb"):
            raise PeftError(
                f"s4 takes four groups of the letters a, l, p and b, not {' '.join(self.groups) or 'none'}."
            )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(bottleneck=8, rank=2, tokens=2)
        return small, dataclasses.replace(small, groups=("lb", "apb", "pbl", "a"), tower="image")

    def install(self, plan: Plan) -> None:
        strategies = {"a": self._adapters, "l": self._lora, "p": self._prefixes, "b": self._biases}
        for tower, blocks in plan.towers():
            for letter, strategy in strategies.items():
                chosen = [index for index in range(len(blocks)) if letter in self.group(index, len(blocks))]
                chosen = [index for index in chosen if self.blocks is None or index in self.blocks]
                if chosen:
                    strategy(dataclasses.replace(plan, method=dataclasses.replace(self, tower=tower, blocks=chosen)))

    def group(self, block: int, depth: int) -> str:
        """The strategies of a block."""
        return self.groups[bisect(EDGES, (block + 0.5) / depth)]

    def _adapters(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            plan.add_behind(sublayer, Bottleneck(dim, width, activation="relu", options=plan.options_at(sublayer.norm)))

    def _lora(self, plan: Plan) -> None:
        for place, rank in plan.places(("q", "v"), self.rank, LowRank):
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale))

    def _prefixes(self, plan: Plan) -> None:
        add_prefixes(plan, self.tokens, None)

    def _biases(self, plan: Plan) -> None:
        for module, name in plan.stock_parameters():
            if name.endswith("bias"):
                plan.train(module, name)
