"""Blocks whose inputs are computed anew: the same gradients, draws repeated, little kept, and what cannot be inverted."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_core import PeftError, adapt, disabled, remove
from peft_core.attach import grafts_named
from peft_core.counting import kept_bytes
from peft_core.grafts.reversible import Reversible
from peft_core.passes.together import Together
from peft_core.testing import perturb

SIZES: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, num_classes=5)
X = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SIZES | changes).double()


def gradients(model: nn.Module, inverts: bool, x: Tensor = X) -> dict[str, Tensor]:
    """Of a loss, as blocks that are inverted or as ordinary ones give them."""
    for _, _, graft in grafts_named(model, "meft"):
        if isinstance(graft, Reversible):
            graft.recomputes = inverts
    model.zero_grad()
    torch.manual_seed(3)
    model(x).square().sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", ["layer", "adapter", "attn"])
@pytest.mark.parametrize("keep, blocks", [(None, None), (2, (1, 2, 3)), (1, None)])
def test_gradients_are_those_of_ordinary_blocks(variant: str, keep: int | None, blocks: tuple[int, ...] | None) -> None:
    """Dropout and drop path draw again; a prefix before the run trains too; other methods may stand within the blocks."""
    model = vit(drop_path_rate=0.3, proj_drop_rate=0.2)
    adapt(model, "meft", variant=variant, keep=keep, blocks=blocks, bottleneck=4, dropout=0.2)
    model = adapt(model, "vera", rank=4).train()
    perturb(model)
    found, expected = gradients(model, True), gradients(model, False)
    assert found.keys() == expected.keys() == {key for key, p in model.named_parameters() if p.requires_grad}
    near = 1e-7 if variant == "attn" and keep is None else 1e-9  # a hundredfold a block
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=near, atol=near * gradient.abs().max().item())


def test_little_is_kept_for_backward() -> None:
    kept = []
    for recomputed in (0, None):
        model = adapt(vit(depth=6), "meft", recomputed=recomputed).train()
        kept.append(kept_bytes(lambda model=model: model(X).sum(), model))
    assert kept[1] < 0.2 * kept[0]


def test_checkpointed_blocks_are_inverted_too() -> None:
    model = adapt(vit(), "meft", bottleneck=4).train()
    perturb(model)
    expected = gradients(model, True)
    for block in model.blocks:
        run = block.forward
        block.forward = lambda x, run=run: checkpoint(run, x, use_reentrant=False)
    for key, gradient in gradients(model, True).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12)


def test_numbers_too_coarse_and_functions_of_parameters_take_the_plain_way() -> None:
    model = adapt(vit(), "meft", bottleneck=4).train()
    tensors = {key: p.detach().clone().requires_grad_(p.requires_grad) for key, p in model.named_parameters()}
    y = torch.func.functional_call(model, tensors, (X,))
    trained = {key: t for key, t in tensors.items() if t.requires_grad}
    found = torch.autograd.grad(y.square().sum(), list(trained.values()))
    for gradient, expected in zip(found, gradients(model, True).values(), strict=True):
        torch.testing.assert_close(gradient, expected)
    model.bfloat16()(X.bfloat16()).sum().backward()


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(PeftError, match="consecutive"):
        adapt(vit(), "meft", blocks=(0, 2))
    with pytest.raises(PeftError, match="load the model in float32"):
        adapt(vit().bfloat16(), "meft")
    with pytest.raises(PeftError, match="something joins the stream between reversible blocks"):
        adapt(adapt(vit(), "meft"), "vpt", tokens=2, deep=True)(X)
    model = adapt(vit(), "meft", keep=None).train()
    seen: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(X)
    with pytest.raises(PeftError, match="does not see the end of a run"):
        seen[0].sum().backward()


def test_between_blocks_stands_the_mean_and_off_is_the_frozen_model() -> None:
    stock = vit().eval()
    model = adapt(vit(), "meft", bottleneck=4).eval()
    stock.head.load_state_dict(model.head.state_dict())
    _, features = model.forward_intermediates(X, indices=[1])
    assert features[0].shape == (2, 16, 4, 4)
    with disabled(model), torch.no_grad():
        assert torch.equal(model(X), stock(X))
    with torch.no_grad():
        other = adapt(vit(), "linear").eval()
        for one, y in zip((model, other), Together([model, other])(X), strict=True):
            torch.testing.assert_close(y, one(X))
    assert type(remove(model).blocks[0]) is type(stock.blocks[0])
