"""What search is compared with at the same budget: a random subnet, and each method alone at one width in all blocks."""

from __future__ import annotations

from random import Random

from torch import nn

from peft_core.errors import PeftError
from vision_peft.methods.noah import NOAH
from vision_peft.noah.forms import Forms, form
from vision_peft.noah.search import draw_within

DRAWS = 50


def baselines(model: nn.Module, forms: Forms, limit: int, seed: int) -> dict[str, NOAH]:
    """Name -> a subnet that no search chose, and that inserts at most `limit` parameters.

    Args:
        model: the stock backbone that `forms` is of.
        seed: of the random subnet: of 50 drawn from the space as the search draws them, the one nearest to the limit; it is
            left out where the space has none within it.
    """
    space, chance, found = forms.space, Random(f"baseline {seed}"), dict[str, NOAH]()
    smallest = space.smallest(forms.blocks)
    if forms.count(smallest) <= limit:
        drawn = max((draw_within(forms, limit, chance) for _ in range(DRAWS)), key=forms.count)
        found["random"] = space.method(drawn)
    for name in space.methods:
        method = uniform(model, name, limit, space.method(smallest))
        if method is not None:
            found[f"uniform_{name}"] = method
    return found


def uniform(model: nn.Module, name: str, limit: int, like: NOAH) -> NOAH | None:
    """One method alone with the same width in all blocks, the largest that inserts at most `limit` parameters; None where
    even width 1 inserts more."""

    def single(width: int) -> NOAH:
        settings = {name: like.settings[name]} if name in like.settings else {}
        return NOAH(widths={name: width}, dropout=like.dropout, settings=settings)

    def fits(width: int) -> bool:
        try:
            return form(model, single(width)).parameters <= limit
        except PeftError:  # wider than a layer
            return False

    if not fits(1):
        return None
    width = 1
    while fits(2 * width):
        width *= 2
    step = width // 2
    while step:
        width, step = (width + step if fits(width + step) else width), step // 2
    return single(width)
