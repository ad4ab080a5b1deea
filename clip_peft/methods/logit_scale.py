from dataclasses import dataclass
from typing import ClassVar

from peft_core.errors import PeftError
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class LogitScale(Method):
    """Logit scale: a contrastive model's temperature trains, and its bias where it has one (SigLIP).

    s in exp(s) f̂·t̂ + b; Radford et al., ICML 2021, Zhai et al., ICCV 2023, which train both in pretraining. Alone it
    calibrates; beside a graft it is what `fit --recipe pairs --train_scale` adds. One parameter, or two. It is installed by
    `adapt`, but is none of the methods that change features, which do not depend on it.
    """

    grafts: ClassVar[bool | None] = None

    def install(self, plan: Plan) -> None:
        own = [name for module, name in plan.stock_parameters() if not module and name in ("logit_scale", "logit_bias")]
        if not own:
            raise PeftError(f"{self.name} trains a contrastive model's logit scale, which this model does not have.")
        plan.train("", *own)
