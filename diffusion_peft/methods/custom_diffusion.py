from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(Method):
    """Custom Diffusion: the key and value projections of cross attention train, whole.

    Kumari et al., "Multi-Concept Customization of Text-to-Image Diffusion", CVPR 2023. New tokens train beside them
    (`fit --placeholder`), several concepts at once; `diffusion_peft.personalize.concepts` merges separately trained ones in
    closed form and compresses the change by SVD. 19,169,280 parameters on the SD 1.5 UNet, 340,787,200 on SDXL.

    Args:
        targets: roles that train; `cross_attn` trains queries and output projections too (43,962,560 on SD 1.5).
    """

    targets: Sequence[str] = ("cross_k", "cross_v")

    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet",)

    def install(self, plan: Plan) -> None:
        for place, _ in plan.places(self.targets):
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(name for name, p in module._parameters.items() if p is not None))
