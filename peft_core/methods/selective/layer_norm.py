from dataclasses import dataclass

from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Method):
    """LayerNorm tuning: weight and bias of every norm train.

    y = (x − μ)/σ ⊙ w + b with w, b (D). Basu et al., "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning",
    AAAI 2024. 38,400 parameters on ViT-B/16 (3,072 a block, 1,536 for the final norm).
    """

    def install(self, plan: Plan) -> None:
        norms = [role for role in plan.anatomy.roles() if "norm" in role]
        for place, _ in plan.places(norms):
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(n for n in ("weight", "bias") if module._parameters.get(n) is not None))
