import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.places import Width
from peft_core.registry import make_method
from peft_core.values import Rate, Widths

PAPER: dict[str, dict[str, Any]] = {
    "vpt": {"deep": True},
    "lora": {"targets": ("qkv",)},
    "adapter": {"position": "pfeiffer", "activation": "quick_gelu"},
}
"""The modules of the paper and how they are set there."""


@dataclass(frozen=True, kw_only=True)
class NOAH(Method):
    """NOAH: several modules at once, each with a width of its own in every block, as a search found them.

    Zhang, Zhou, Liu, "Neural Prompt Search", TPAMI 2024. In block i: p_i prompts, x = [cls, P_i, patches];
    x ← x + attn(norm1 x) with B_i A_i of rank r_i on the fused qkv; x ← x + m + Up(g(Down m)), g(z) = z σ(1.702 z), with h_i
    hidden units, m what the MLP adds to the stream, behind drop path. Prompts start at ±√(6 / (D (p + 1))) for the largest p of
    all blocks (Xavier over 1 p D). The 19 published subnets are presets (`noah/cifar100` … `noah/smallnorb_ele`: 360,134
    parameters on average on ViT-B/16); `vision_peft noah` searches. Drop path and dropout of the frozen model stay on, as there.

    docs/noah.md lists what differs from ZhangYuanhan-AI/NOAH.

    Args:
        widths: method -> one width, or one a block where 0 means absent; any method with a width may stand here.
        dropout: of every module that has one.
        settings: method -> further settings, over the paper's (vpt deep, lora on qkv, adapter after the MLP with QuickGELU).
    """

    widths: dict[str, Widths] = field(default_factory=lambda: dict.fromkeys(PAPER, 5))
    dropout: Rate = 0.0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens and bottlenecks are no change of a weight."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise PeftError("noah needs widths, e.g. {vpt: 5, lora: 5, adapter: 5}.")

    @classmethod
    def of_card(cls, settings: dict[str, Any], format: int) -> dict[str, Any]:
        if format > 1:
            return settings
        former = {"activation": "gelu"} | settings.get("settings", {}).get("adapter", {})
        return settings | {"settings": settings.get("settings", {}) | {"adapter": former}}

    def parts(self) -> dict[str, Method]:
        """Method -> its settings, for those that stand in at least one block."""
        present = {name: w for name, w in self.widths.items() if isinstance(w, int) or any(w)}
        return {name: part(name, width, self.dropout, self.settings.get(name, {})) for name, width in present.items()}

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(widths={"vpt": 2, "lora": 2, "adapter": 2}),)

    def install(self, plan: Plan) -> None:
        for method in self.parts().values():
            method = dataclasses.replace(method, blocks=self.blocks, tower=self.tower)
            method.install(dataclasses.replace(plan, method=method))  # it adds to the same lists
        self._start_prompts(plan)
        places = [(path, slot) for path, slot, _ in plan.grafts]
        if twice := [place for place in places if places.count(place) > 1]:
            raise PeftError(
                f"noah: two of {', '.join(self.widths)} act at {twice[0][0]} ({twice[0][1]}): leave one out."
            )

    @staticmethod
    @torch.no_grad()
    def _start_prompts(plan: Plan) -> None:
        prompts = [
            graft.tokens
            for _, _, graft in plan.grafts
            if isinstance(graft, Tokens) and isinstance(graft.tokens, Tensor)
        ]
        most = max((len(tokens) for tokens in prompts), default=0)
        for tokens in prompts:
            bound = math.sqrt(6 / (tokens.shape[1] * (most + 1)))
            tokens.uniform_(-bound, bound)


def part(name: str, width: Width, dropout: float, settings: Mapping[str, Any]) -> Method:
    """One module of a subnet.

    Raises:
        PeftError: a method without a width.
    """
    method = make_method(name, **(PAPER.get(name, {}) | dict(settings)))
    change: dict[str, Any] = {width_of(type(method)): width}
    if dropout:
        change |= {f.name: dropout for f in dataclasses.fields(method) if f.name == "dropout"}
    return dataclasses.replace(method, **change)


@cache
def width_of(cls: type[Method]) -> str:
    """The setting of a method that is its width in each block: `tokens`, `rank`, `bottleneck`."""
    found = [name for name, hint in get_type_hints(cls).items() if hint == int | Sequence[int]]
    if len(found) != 1:
        raise PeftError(f"{cls.__module__.rpartition('.')[2]} has no width that could differ from block to block.")
    return found[0]
