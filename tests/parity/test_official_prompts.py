"""Prompts and what makes them against tensors that the authors' own code gave, as `test_official` does for what came before.

ChengHan111/E2VPT 7a66e75: prompts under masks, keys and values as one tensor or two, dropout; its scores of masks of ones.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import adapt
from peft_core.parts.tokens.pieces import Masks, Pieced
from peft_core.registry import make_method
from tests.parity.golden import golden
from tests.parity.test_official import LABELS, PICTURES, Case, check, fill, vit


def masks_of(model: nn.Module) -> Masks:
    return next(module for module in model.modules() if isinstance(module, Masks))


@pytest.mark.parametrize("case", ["e2vpt", "e2vpt_apart"])
def test_a_step_of_e2vpt_under_masks_is_the_authors(case: str) -> None:
    hyper = dict(tokens=4, key_values=3, shared=case == "e2vpt", dropout=0.25, pieces=8)
    model = adapt(vit(), make_method("e2vpt", **hyper))
    names = fill(model, Case({}, "e2vpt", hyper, {"tokens": "prompts", "keys_values": "kv"}))
    (adaptation,) = model.__dict__["_peft_record"].adaptations.values()
    method, masks, there = adaptation.method, masks_of(model), golden(case)
    assert isinstance(method, Pieced)
    ((tokens, pieces),) = method._scores(
        model.train(), (F.cross_entropy(model(PICTURES), LABELS) for _ in "1")
    ).values()
    torch.testing.assert_close(tokens, there["score.tokens"], rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(pieces, there["score.pieces"], rtol=1e-8, atol=1e-12)
    masks.tokens[1] = False
    masks.pieces[0, [1, 2, 7]] = masks.pieces[3, [0, 5]] = False
    check(case, model, names, lambda: model(PICTURES), LABELS, lambda: None)
