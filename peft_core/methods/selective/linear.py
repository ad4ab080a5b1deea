from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """Linear probing: nothing but the head trains. The lower baseline of every PEFT paper, 0 inserted parameters."""

    needs: ClassVar[tuple[str, ...]] = ("head",)
    head_alone: ClassVar[bool] = True

    def install(self, plan: Plan) -> None:
        """Nothing is grafted: freezing the model is all there is to do."""
