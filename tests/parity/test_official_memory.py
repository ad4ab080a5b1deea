"""Reversible blocks against tensors that the authors' own code gave, in float64: forward, gradients and one training step.

BaohaoLiao/mefts 1d1c961: `RevBertEncoder`, `RevBackProp`, `RevBertLayer` (MEFT₁ to MEFT₃) and `Adapter`, with attention and MLP
of timm's pre-norm blocks in place of BERT's; without dropout, whose
draws its backward pass repeats by seeds. MEFT₃ has three blocks, as in four its own rounding is 1e-7.
"""

import re

import pytest
import torch

from peft_core import adapt
from peft_core.methods.side.res_tuning import Rising
from tests.parity.golden import golden, values
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


def test_a_bypass_of_a_unet_is_ms_swifts() -> None:
    """modelscope/ms-swift 3602360: `ResTuningBypassModule` of group adapters and upsampling, beside three blocks; run in
    float64, where it changes sizes in float32."""
    net = Rising([32, 32, 16], 4, 2, {"dtype": torch.float64})
    shapes = [(2, 32, 4, 4), (2, 32, 4, 4), (2, 32, 8, 8), (2, 16, 8, 8)]
    features = [values(f"feature.{number}", shape) for number, shape in enumerate(shapes)]
    assert torch.equal(net(features), features[-1])  # at step 0
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(values(name, parameter.shape))
    expected, y = golden("res_tuning_unet"), net(features)
    torch.testing.assert_close(y, expected.pop("y"), rtol=1e-10, atol=1e-10)
    y.square().mean().backward()
    found = {f"grad.{name}": parameter.grad for name, parameter in net.named_parameters()}
    torch.testing.assert_close({key: found[key] for key in expected}, expected, rtol=1e-10, atol=1e-10)
