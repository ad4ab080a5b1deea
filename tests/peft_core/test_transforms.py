"""Adapted models under export, gradients of each sample and of gradients, and empty batches."""

import pytest
import timm
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tests.peft_core.test_from_outside import METHODS, adapted, pictures


@pytest.mark.parametrize("method", ["lora", "dora", "ssf", "adaptformer", "vpt"])
def test_export_serves_batches_of_any_size(method: str) -> None:
    model = adapted(method)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (pictures(2),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        torch.testing.assert_close(exported(pictures(count)), model(pictures(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "ssf", "adaptformer"])
def test_gradients_of_each_sample(method: str) -> None:
    model, x = adapted(method), pictures(3)
    weights = {key: p.detach() for key, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], picture: Tensor) -> Tensor:
        return functional_call(model, weights, (picture[None],)).square().sum()

    each = vmap(grad(loss), (None, 0))(weights, x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(each[key][i], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "ssf"])
def test_a_gradient_of_a_gradient_is_that_of_the_plain_path(method: str) -> None:
    timm.layers.set_fused_attn(False)
    model = adapted(method).double()
    timm.layers.set_fused_attn(True)
    x = pictures().double().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]

    def penalty() -> list[Tensor]:
        (of_input,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(of_input.square().sum(), trained, allow_unused=True))

    fast = penalty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft_core.grafts.weight_changes.transforms_are_active", lambda: True)
        plain = penalty()
    assert sum(g is not None for g in plain) > 3
    for one, other in zip(fast, plain, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method: str) -> None:
    model = adapted(method).train()
    model(pictures(0)).sum().backward()
