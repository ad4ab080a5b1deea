"""What a method is, and how a method's name finds its file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from peft_core.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method's hyper-parameters, and in `install` which graft it puts on which role.

    Args:
        blocks: indices of the blocks it works on; all, and the places outside blocks, where None.
        tower: "image" or "text" of a model with two towers; both where None.
    """

    blocks: Sequence[int] | None = None
    tower: str | None = None

    identity: ClassVar[bool] = True
    """The adapted model equals the frozen one at step 0."""
    not_mergeable: ClassVar[str | None] = None
    """Why the change cannot be written into stock weights; None where it can."""
    keeps_originals: ClassVar[bool] = True
    """Whether stock weights that the method trains are remembered, for `disabled` and `remove`."""
    grafts: ClassVar[bool] = True
    """Whether `adapt` installs it; False for methods that work beside the model (clip_peft.OpenVocabulary runs those)."""
    moves_statistics: ClassVar[bool] = False
    """Whether running statistics of the stock model's norms move while it trains, and are saved."""
    silences_dropout: ClassVar[bool] = False
    """Whether dropout and drop path of the frozen model are off while it trains."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | range):
                object.__setattr__(self, field.name, tuple(value))

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def install(self, plan: "Plan") -> None:
        raise NotImplementedError(f"{type(self).__name__} must define install(plan)")
