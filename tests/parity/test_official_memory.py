"""Reversible blocks against tensors that the authors' own code gave, in float64: forward, gradients and one training step.

BaohaoLiao/mefts 1d1c961: `RevBertEncoder`, `RevBackProp`, `RevBertLayer` (MEFT₁ to MEFT₃) and `Adapter`, with attention and MLP
of timm's pre-norm blocks in place of BERT's; without dropout, whose
draws its backward pass repeats by seeds. MEFT₃ has three blocks, as in four its own rounding is 1e-7.
"""

import re

import pytest

from peft_core import adapt
from tests.parity.test_official import LABELS, PICTURES, check, vit
from tests.parity.test_official_vectors import fill


def beside(key: str) -> str:
    block, last = re.findall(r"blocks\.\d+|(?:down|up)\.\w+$", key)
    return f"{block}.{'beside' if 'mlp_branch' in key else 'other'}.{last}"


@pytest.mark.parametrize(
    "case, variant, recomputed",
    [
        ("meft_layer", "layer", None),
        ("meft_adapter", "adapter", None),
        ("meft_attn", "attn", None),
        ("meft_adapter_upper_kept", "adapter", 2),
    ],
)
@pytest.mark.parametrize("keep", [None, 2])
def test_a_step_of_meft_is_the_authors(case: str, variant: str, recomputed: int | None, keep: int | None) -> None:
    model = adapt(
        vit(depth=3 if variant == "attn" else 4),
        "meft",
        variant=variant,
        bottleneck=3,
        recomputed=recomputed,
        keep=keep,
    )
    names = fill(model, beside)
    check(case, model, names, lambda: model(PICTURES), LABELS, lambda: None)
