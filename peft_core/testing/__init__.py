"""What any method must hold, for authors outside too: `contract(MyMethod)` tries a method's examples on tiny models.

One copy of a stock model a pair, and on it, in turn: identity at step 0; only the method's parameters train and each gets a
gradient; saved, loaded, copied, pickled and deep-copied models give the same bits; a stock checkpoint loads strictly; the
scale goes from the frozen to the adapted model; merging gives the stock class and the same outputs, or says why not;
removing gives the very model that came in.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from peft_core import lifecycle
from peft_core.adaptation import adapt
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.registry import find_method, known_for_now
from peft_core.testing.families import Family, Losses, lacks, loss, perturb, usual_families
from peft_core.testing.promises import (
    COPIES,
    BrokenContract,
    adapted,
    frozen,
    goes,
    hold,
    merges,
    same,
    scales,
    starts,
    trains,
    travels,
)

__all__ = ["BrokenContract", "Family", "check", "contract", "lacks", "loss", "perturb", "usual_families"]


def contract(method: str | type[Method] | Method, families: Mapping[str, Family] | None = None) -> dict[str, str]:
    """Tries a method on models; family -> "holds", or the sentence with which the method refuses it.

    Args:
        method: a name, a class (its `examples()` are tried) or one method with its settings.
        families: by name; a tiny timm ViT and a tiny open_clip model where None.

    Raises:
        BrokenContract: it does not keep a promise, or refuses every model.
    """
    cls = find_method(method) if isinstance(method, str) else method
    examples = [cls] if isinstance(cls, Method) else list(cls.examples())
    families = usual_families() if families is None else families
    found: dict[str, str] = {}
    for example in examples:
        answers = {name: check(family, example) for name, family in families.items()}
        if all(answers.values()):
            raise BrokenContract(f"{example} works on none of {', '.join(answers)}: {next(iter(answers.values()))}")
        found |= {name: answer or "holds" for name, answer in answers.items() if found.get(name) != "holds"}
    return found


def check(family: Family, method: Method, ways: Sequence[str] = tuple(COPIES)) -> str | None:
    """Tries one method with its settings on one model; the sentence of its refusal, None where it works.

    Args:
        ways: of copying the model, which take time; the last one's copy is merged.

    Raises:
        BrokenContract: it does not keep a promise.
    """
    model = family.model().train()
    try:
        adapt(model, method)
    except PeftError as refusal:
        hold(same(model, family.stock) and not adapted(model), "a refusal leaves the model as it was", family, method)
        return str(refusal)
    promise = functools.partial(hold, family=family, method=method)
    if lifecycle.wants(model, "prepare"):
        lifecycle.prepare(model, Losses(model, family))
    starts(model, family, method, promise)
    trains(model, family, promise)
    model.zero_grad(set_to_none=True)
    y = family(model.eval()).detach()
    stock, out = frozen(model, family)
    with known_for_now(type(method)):
        twin = travels(model, y, family, promise, ways)
    scales(model, y, out, family, method, promise)
    merges(twin, y, family, promise)
    goes(model, stock, out, family, method, promise)
    return None
