from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.branch import Branch, Given
from peft_core.grafts.shared import Reference
from peft_core.kernels.scaled_gradient import scaled_gradient
from peft_core.method import Method, Plan
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class MMA(Method):
    """MMA: x ← block(x) + s · U relu(S relu(D norm1(x))) in the upper blocks of both towers, whose S of one depth are one.

    Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024; ZjjConan/VLM-MultiModalAdapter. D (h, d), U
    (d, h) are a block's own, S (h, h) stands once for block k of both towers; all have biases, and start
    as Kaiming's normal of the fan out, biases 0. The gradients of D, S and U do not feel s (there they are
    multiplied by 1/s), those of x do. Blocks count from 1: 5 to 12 of ViT-B-16 have 674,560 parameters. Classes are named by "a
    photo of a {}." there, for all data sets.

    Args:
        width: h.
        scale: s.
        first, last: the blocks, of each tower those that it has.
    """

    width: Count = 32
    scale: Positive = 0.001
    first: Count = 5
    last: Count = 12
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("pair", "gates")
    not_mergeable: ClassVar[str | None] = "a branch with activations beside a block is no change of its weights."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(width=4, scale=0.1, first=2, last=3),)

    def install(self, plan: Plan) -> None:
        if not {"image", "text"} <= plan.anatomy.blocks.keys() or self.tower is not None:
            raise PeftError(
                f"{self.name} joins an image tower and a text tower: adapt a whole CLIP model, with no tower chosen."
            )
        steps = {(step.tower, step.block, step.kind): step for step in plan.anatomy.sublayers}
        for mlp, width, dim in plan.sublayers(("mlp",), self.width):
            if not self.first <= mlp.block + 1 <= self.last:
                continue
            options = plan.options_at(mlp.norm)
            shared = plan.shared(
                f"block_{mlp.block}", lambda w=width, o=options: nn.Sequential(_linear(w, w, o), nn.ReLU())
            )
            branch = Branch(_Adapter(dim, width, shared, self.scale, options), read=True)
            branch.output = mlp.output
            plan.join(mlp.gate or mlp.out, "block_branch", branch)
            plan.join(steps[mlp.tower, mlp.block, "attn"].norm, "block_normed", Given(branch))


class _Adapter(nn.Module):
    def __init__(self, dim: int, width: int, shared: Reference, scale: float, options: dict):
        super().__init__()
        self.down, self.up = _linear(dim, width, options), _linear(width, dim, options)
        self.shared, self.scale = shared, scale

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.down(scaled_gradient(x, self.scale)))
        return scaled_gradient(self.up(self.shared()(h)) * self.scale, 1 / self.scale)


def _linear(inputs: int, outputs: int, options: dict) -> nn.Linear:
    made = nn.Linear(inputs, outputs, **options)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(made.bias)
    return made
