from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class AdaptFormer(Method):
    """AdaptFormer: x ← x + MLP(norm2(x)) + s·Up(drop(ReLU(Down x))), beside the MLP, from the stream before the norm.

    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022. The branch is
    added after layer scale and drop path. s = 0.1 fixed, bottleneck 64, dropout 0.1 for images: ShoufaChen/AdaptFormer.
    1,189,632 parameters on ViT-B/16 at 64, 156,768 at 8.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        scale: s, 0.1 where None; `learn_scale` makes it a parameter a block, which then starts at 1 where None, as there.
    """

    bottleneck: Widths = 64
    scale: Positive | None = None
    learn_scale: bool = False
    dropout: Rate = 0.1
    not_mergeable: ClassVar[str | None] = "a branch with an activation beside the MLP is no change of its weights."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=8, dropout=0.0, learn_scale=True),)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            options = plan.options_at(sublayer.norm)
            scale = (1.0 if self.learn_scale else 0.1) if self.scale is None else self.scale
            change = Bottleneck(dim, width, activation="relu", scale=scale, learn_scale=self.learn_scale,
                                dropout=self.dropout, options=options)  # fmt: skip
            plan.add_branch(sublayer, change)
