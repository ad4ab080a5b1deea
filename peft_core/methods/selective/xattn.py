from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft_core.errors import PeftError
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class XAttn(Method):
    """Cross-attention fine-tuning: the weights and biases of cross attention train, and nothing else.

    Gheini et al., "Cross-Attention is All You Need: Adapting Pretrained Transformers for Machine Translation", EMNLP 2021. Of a
    text-to-image UNet these are the layers in which pictures read the text; the paper's new embeddings are its new language's.
    On SD 1.5 all of them hold 43,962,560 parameters, the keys and values alone 19,169,280 (as Custom Diffusion trains them).

    Args:
        targets: roles of cross attention, `cross_q cross_k cross_v cross_proj`, or their group `cross_attn`.
    """

    targets: Sequence[str] = ("cross_attn",)
    needs: ClassVar[tuple[str, ...]] = ("cross",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(),)

    def install(self, plan: Plan) -> None:
        if "cross_k" not in plan.anatomy.roles():
            raise PeftError(
                f"xattn trains cross attention alone, of which this {plan.anatomy.family} has none: a text-to-image UNet has."
            )
        for place, _ in plan.places(self.targets):
            if not place.role.startswith("cross_"):
                raise PeftError(f"xattn trains cross attention alone, and {place.role} is no part of it: leave it out.")
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(name for name in ("weight", "bias") if module._parameters.get(name) is not None))
