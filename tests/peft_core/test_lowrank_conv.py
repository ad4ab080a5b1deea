"""The fast low-rank convolution equals its plain formula, in outputs and in every gradient, and keeps nothing it need not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_core.counting import kept_bytes
from peft_core.errors import PeftError
from peft_core.grafts.weight_changes import convolution
from peft_core.kernels.rebuild import tag
from peft_core.parts.lowrank import LowRank

CONVOLUTIONS = {
    "3 x 3": dict(kernel_size=3, padding=1),
    "1 x 1": dict(kernel_size=1),
    "5 x 3": dict(kernel_size=(5, 3), padding=(2, 1)),
    "stride": dict(kernel_size=3, padding=1, stride=2),
    "no padding": dict(kernel_size=3),
    "dilated": dict(kernel_size=3, padding=2, dilation=2),
    "same": dict(kernel_size=3, padding="same"),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "reflected": dict(kernel_size=3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("side", [6, 20])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lowrank_conv_equals_the_plain_formula(options, layout, trained, side):
    torch.manual_seed(0)
    stock = nn.Conv2d(6, 8, **options).double().requires_grad_(trained)
    delta = LowRank(stock.weight, None, 2, 0.7)
    nn.init.normal_(delta.B, std=0.3)
    x = torch.randn(2, 6, side, side, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y = convolution(stock, x, [delta])
    change = 0.7 * (delta.B @ delta.A).view(stock.weight.shape)
    expected = stock._conv_forward(x, stock.weight + change, stock.bias)
    torch.testing.assert_close(y, expected)
    leaves, g = [x, delta.A, delta.B, *(stock.parameters() if trained else ())], torch.randn_like(y)
    for one, other in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        torch.testing.assert_close(one, other)


def test_lowrank_conv_keeps_the_input_of_the_activation_before_it_and_rounds_once_under_autocast():
    torch.manual_seed(0)
    act, stock = nn.SiLU(), nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False)
    act.register_forward_hook(tag, prepend=True)
    delta = LowRank(stock.weight, None, 2, 0.7)
    nn.init.normal_(delta.B, std=0.3)
    x = torch.randn(2, 6, 20, 20, requires_grad=True)
    plain = F.conv2d(
        act(x), stock.weight + delta.scale * (delta.B @ delta.A).view(stock.weight.shape), stock.bias, padding=1
    )
    leaves = (x, delta.A, delta.B)
    expected = torch.autograd.grad(plain.square().sum(), leaves)
    floor = kept_bytes(lambda: act(x), stock)
    assert kept_bytes(lambda: convolution(stock, act(x), [delta]), stock) < 1.1 * floor
    for found, other in zip(
        torch.autograd.grad(convolution(stock, act(x), [delta]).square().sum(), leaves), expected, strict=True
    ):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolution(stock, act(x), [delta])
        assert y.dtype == torch.bfloat16
        found = torch.autograd.grad(y.float().square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_dropout_of_its_own_is_refused_on_a_grouped_convolution():
    stock = nn.Conv2d(6, 8, 3, groups=2)
    with pytest.raises(PeftError, match="set dropout to 0"):
        convolution(stock, torch.randn(1, 6, 5, 5), [LowRank(stock.weight, None, 2, 1.0, dropout=0.1)])
