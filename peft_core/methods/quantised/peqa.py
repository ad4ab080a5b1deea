from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft_core.errors import PeftError
from peft_core.kernels.quantised import packed_of
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class PEQA(Method):
    """PEQA: W' = (s₀ + Δs)·(q − z): of a backbone in integers the scales train, integers and zero points stay.

    Kim et al., "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer Quantization", NeurIPS
    2023 (arXiv 2305.14152). s (out, groups) is the quantised linear's own; integers are rounded to the nearest from a group's
    least to its largest, z is floating. The quantised model at step 0; another task is another set of scales, and nothing is
    left to merge. The backbone comes as `quantise(model, "int4")` (groups of 64; `group=0` a scale a row, the paper's first
    form) or with `--quantize int4`. On all linears of ViT-B/16: 82,944 with a scale a row, 663,552 with groups of 128.
    Learning rate and epochs of the paper are not known here; scales are small: begin with 1e-5 to 1e-4.
    """

    targets: Sequence[str] | None = ("attn", "mlp")

    needs: ClassVar[tuple[str, ...]] = ("quantised",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(), cls(targets=("mlp",))

    def install(self, plan: Plan) -> None:
        rows: dict[str, int] = {}
        for place, _ in plan.places(self.targets):
            packed = packed_of(plan.model.get_submodule(place.module))
            if packed is None or packed.kind != "groups":
                raise PeftError(
                    f"peqa trains the scales of integers, and {place.module} holds none: "
                    'quantise(model, "int4") first, or fit with --quantize int4 or int8.'
                )
            rows[place.module] = rows.get(place.module, 0) + plan.shape(place)[0]
            if rows[place.module] >= packed.shape[0]:
                plan.train(place.module, "scale")
        for path, count in rows.items():
            if f"{path}.scale" not in plan.trained:
                raise PeftError(
                    f"peqa trains all scales of a module, and these targets are only {count} rows of {path}: "
                    "name q, k and v together."
                )
