from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.kernels.quantised import packed_of
from peft_core.lifecycle import own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.predictions import Predictions
from peft_core.parts.quantised.packed import kept_weight
from peft_core.parts.ranked import Ranked
from peft_core.passes.evaluating import evaluating
from peft_core.quantising import as_they_were
from peft_core.values import NotNegative, Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class INT21(Ranked):
    """INT2.1's low-rank error correction: y = Q x + s·B A drop(x), Q of two bits, taught by the float model that Q was made of.

    Chai et al., "INT2.1: Towards Fine-Tunable Quantized Large Language Models with Error Correction through Low-Rank
    Adaptation", 2023 (arXiv 2306.08162), as in stochasticai/xTuring@ef23c72, examples/int2-1/LREC. A is Kaiming-uniform, B zero:
    the quantised model at step 0. It trains on 200 · the mean cross-entropy of the tokens + the sum over a text of 2,048 tokens
    of KL(float model's prediction | its own): that is the task's loss + 2048/200 · the mean divergence of a prediction, the
    same to Adam. Rank 32, alpha 128, dropout 0.05 on all linears: 5,308,416 parameters on ViT-B/16.

    There the teacher's own head has been trained with it; a classifier's is new here, and the teacher predicts with that head as
    it stands, which is built from the idea. The model must give logits (B, classes): others train on the task alone, as LoRA
    does. There GPTQ rounds, in groups of 128, and the teacher's logits are cached; here `quantise` rounds to the nearest (`int2`,
    in groups of 32 unless `group=128`), and each step runs the float model once more. The backbone is quantised with its weights
    at hand, `quantise(model, "int2", keep=True)` or `--quantize int2`; they stay there until `finish`. Without them it loads and
    predicts, and does not train.

    Args:
        divergence: weight of the divergence; 0: LoRA on a quantised backbone.
    """

    rank: Widths = 32
    alpha: Positive | None = 128.0
    dropout: Rate = 0.05
    targets: Sequence[str] | None = ("attn", "mlp")
    divergence: NotNegative = 10.24

    needs: ClassVar[tuple[str, ...]] = ("quantised",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=4, alpha=16.0), cls(rank=2, alpha=None, dropout=0.0, targets=("q", "v"))

    def install(self, plan: Plan) -> None:
        kept = {path: kept_weight(module) for path, module in plan.model.named_modules()}
        teacher = Teacher({path: weight for path, weight in kept.items() if weight is not None})
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            module = plan.model.get_submodule(place.module)
            if packed_of(module) is None:
                raise PeftError(
                    f"int2_1 corrects what quantisation lost, and {place.module} is not quantised: "
                    'quantise(model, "int2", keep=True) just before, or fit with --quantize int2.'
                )
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout))
        plan.join("", "teacher", teacher)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "penalty" or self.divergence > 0)

    def penalty(self, model: nn.Module) -> Tensor | float:
        (teacher,) = own_grafts(model, self, Teacher)
        if not teacher.training:
            return 0.0
        args, kwargs, own = teacher.take(self.name)
        if own is None:
            return 0.0
        if not teacher.weights:
            raise PeftError(
                "int2_1 is taught by the float model, whose weights are gone: quantise with keep=True before it is installed, or "
                "set divergence to 0."
            )
        with torch.no_grad(), evaluating(model), as_they_were(model, teacher.weights):
            wanted: Any = model(*args, **kwargs)
        own, wanted = (logits.float().log_softmax(-1) for logits in (own, wanted))
        return self.divergence * F.kl_div(own, wanted, reduction="batchmean", log_target=True)

    def finish(self, model: nn.Module) -> None:
        for teacher in own_grafts(model, self, Teacher):
            teacher.weights.clear()


class Teacher(Predictions):
    """Holds the weights that were quantised, beside the parameters: no file has them."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights
