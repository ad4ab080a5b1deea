"""Dense changes are formed again for the backward: the plain path's gradients, and none of what it keeps."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from peft_core import adapt, set_scale
from peft_core.counting import kept_bytes
from peft_core.grafts.weight_changes import convolution
from peft_core.kernels.rebuild import tag
from peft_core.parts.hadamard import Hadamard
from peft_core.parts.scaling import InputScale
from tests.tiny import pictures, vit

EVERY = ("qkv", "proj", "fc1", "fc2")
METHODS = {
    "hira": dict(rank=4, targets=EVERY), "svdiff": dict(targets=EVERY), "rlrr": {}, "glora": dict(rank=2),
    "loha": dict(rank=2, targets=("q", "v", "mlp")), "miss": dict(form="bat", rank=4, targets=("q", "v", "fc1")),
    "hiwi": dict(of="weight", rank=4), "said": dict(dim=300), "oft": dict(block_size=4, targets=("q", "v")),
    "oft of the input": dict(block_size=4, targets=EVERY), "ia3": dict(targets=("k", "v"), feedforward=("fc1", "fc2")),
    "miss shared": dict(rank=5, targets=("q", "v", "fc1")), "miss mini": dict(form="mini", mini=4, rank=4, targets=("mlp",)),
    "road": dict(group_size=4), "road of rows": dict(variant="road_4", group_size=4, targets=("q", "v")),
}  # fmt: skip


def model_of(method: str):
    torch.manual_seed(0)
    model = adapt(vit(embed_dim=48, depth=2)(), method.split()[0], **METHODS[method]).double().train()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and ".peft." in key:
            nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model, x, run=None):
    model.zero_grad(set_to_none=True)
    (model if run is None else run)(x).float().square().sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def alike(one, other, tolerance=1e-12):
    assert one.keys() == other.keys()
    for key, expected in other.items():
        torch.testing.assert_close(one[key], expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.fixture
def plain(monkeypatch):
    """From its call on, F.linear with W', which autograd follows."""
    return lambda: monkeypatch.setattr("peft_core.grafts.weight_changes.transforms_are_active", lambda: True)


@pytest.fixture(scope="module")
def x():
    return pictures()()["x"].double()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_plain_path_and_less_than_half_is_kept(method, x, plain):
    model = model_of(method)
    found, kept = gradients(model, x), kept_bytes(lambda: model(x), model)
    plain()
    alike(found, gradients(model, x))
    most = {"oft": 0.7, "road of rows": 0.8, "road": 0.7, "miss shared": 0.9, "miss mini": 0.9}
    assert kept < kept_bytes(lambda: model(x), model) * most.get(method, 0.5)


@pytest.mark.parametrize("method", ["oft of the input", "ia3", "miss shared", "road"])
def test_a_mapped_input_is_differentiated_twice_and_repeated_under_autocast(method, x, plain):
    model = model_of(method).float()

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x.float())

    rough, layer = gradients(model, x, cast), model.double().blocks[0].mlp.fc1
    rows = torch.randn(3, 5, 48, dtype=torch.float64, requires_grad=True)

    def penalty():
        (of_input,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
        return torch.autograd.grad(of_input.square().sum(), [p for p in layer.parameters() if p.requires_grad])

    second = penalty()
    plain()
    torch.testing.assert_close(second, penalty())
    alike(rough, gradients(model.float(), x, cast), 5e-2)


@pytest.mark.parametrize("method", ["ia3", "road", "ssf", "dora"])
@pytest.mark.parametrize("shape", [(48,), (0, 48), (2, 0, 48)])
def test_one_row_by_itself_and_no_rows_at_all(method, shape):
    settings = METHODS["ia3"] if method == "ia3" else dict(targets=("fc1",))
    layer: Any = adapt(vit(embed_dim=48, depth=2)(), method, **settings).double().blocks[0].mlp.fc1
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    trained = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), [x, *trained])
    torch.testing.assert_close(y, layer(x.expand(2, *shape))[0])
    assert y.shape == (*shape[:-1], 192) and found[0].shape == shape
    assert all(torch.isfinite(grad).all() for grad in found)


def test_another_parameter_of_the_same_version_is_looked_at_anew():
    weight, x = torch.randn(5, 4), torch.randn(3, 4)
    change = InputScale(weight, None)

    def gradient():
        (found,) = torch.autograd.grad(InputScale.kernel(x, weight, None, [change]).sum(), change.scale)
        return found

    expected, version = gradient(), change.scale._version
    change.scale = torch.nn.Parameter(torch.empty(4))
    torch.nn.init.zeros_(change.scale)
    assert change.scale._version == version
    torch.testing.assert_close(gradient(), expected)  # of a linear function


def test_no_more_is_kept_than_by_the_frozen_model(x):
    frozen = adapt(vit(embed_dim=48, depth=2)(), "linear").double().train()
    frozen.patch_embed.register_forward_hook(lambda module, args, y: y.requires_grad_())
    floor = kept_bytes(lambda: frozen(x), frozen)
    for method in ("hira", "glora", "loha", "ia3"):
        model = model_of(method)
        assert kept_bytes(lambda model=model: model(x), model) <= 1.02 * floor


def test_under_checkpointing_and_under_autocast(x, plain):
    model = model_of("hira")
    expected = gradients(model, x)
    alike(gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=False)), expected)
    model.set_grad_checkpointing(True)
    alike(gradients(model, x), expected)
    model.set_grad_checkpointing(False)
    model.float()

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x.float())

    rough = gradients(model, x, cast)
    plain()
    alike(rough, gradients(model, x, cast), 2e-2)


def test_two_adaptations_on_one_weight_share_the_kernel(x, plain):
    torch.manual_seed(0)
    model = adapt(model_of("hira"), "loha", name="second", rank=2, targets=("qkv", "fc1")).double()
    found, kept = gradients(model, x), kept_bytes(lambda: model(x), model)
    assert any(".second." in key for key in found)
    plain()
    alike(found, gradients(model, x))
    assert kept < 0.5 * kept_bytes(lambda: model(x), model)


def test_the_scale_of_the_forward_holds_for_its_backward(x):
    model = model_of("loha")
    expected = gradients(model, x)
    model.zero_grad()
    loss = model(x).float().square().sum()
    set_scale(model, 0.0)
    loss.backward()
    alike({key: p.grad for key, p in model.named_parameters() if p.grad is not None}, expected)


def test_tensors_given_by_functional_call_get_the_gradients_though_they_are_gone_in_backward(x):
    model = model_of("said")  # its z stands at the root, shared by all layers
    expected = gradients(model, x)
    given = {key: p.detach().clone().requires_grad_(p.requires_grad) for key, p in model.named_parameters()}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in expected:
                parameter.add_(1.0)
    functional_call(model, given, (x,)).float().square().sum().backward()
    alike({key: p.grad for key, p in given.items() if p.grad is not None}, expected)


@pytest.mark.parametrize("method", ["hira", "glora"])
def test_second_derivatives_and_gradients_of_each_sample(method):
    torch.manual_seed(0)
    model = model_of(method)
    layer = model.blocks[0].mlp.fc1
    trained = {key: p for key, p in layer.named_parameters() if p.requires_grad}
    x = torch.randn(3, 5, 48, dtype=torch.float64, requires_grad=True)
    (of_input,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    second = torch.autograd.grad(of_input.square().sum(), list(trained.values()), allow_unused=True)

    def loss(weights, x):
        return functional_call(layer, weights, (x,)).square().sum()

    def penalty(weights):
        return grad(loss, 1)(weights, x.detach()).square().sum()

    for found, expected in zip(second, grad(penalty)(trained).values(), strict=True):
        torch.testing.assert_close(torch.zeros_like(expected) if found is None else found, expected)
    each = vmap(grad(loss), (None, 0))(trained, x.detach())
    for index, one in enumerate(x.detach()):
        layer.zero_grad()
        layer(one).square().sum().backward()
        for key, parameter in trained.items():
            torch.testing.assert_close(each[key][index], parameter.grad)


def test_compiled_in_one_graph():
    layer = model_of("hira").blocks[0].mlp.fc1
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    expected = gradients(layer, x)
    alike(gradients(layer, x, torch.compile(layer, backend="aot_eager", fullgraph=True)), expected)


@pytest.mark.parametrize(
    "options", [dict(padding=1), dict(stride=2, groups=2), dict(padding=1, dilation=2, bias=False)]
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_convolution_likewise(options, trained):
    torch.manual_seed(0)
    act, stock = nn.SiLU(), nn.Conv2d(6, 8, 3, **options).double().requires_grad_(trained)
    act.register_forward_hook(tag, prepend=True)
    delta = Hadamard(stock.weight, None, 2, 0.7, cores=False)
    nn.init.normal_(delta.w2_a)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    y = convolution(stock, act(x), [delta])
    expected = stock._conv_forward(F.silu(x), delta(stock.weight), stock.bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    leaves, g = [x, *delta.parameters(), *(stock.parameters() if trained else ())], torch.randn_like(y)
    for one, other in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        torch.testing.assert_close(one, other)
    floor = kept_bytes(lambda: act(x), stock)
    own = sum(p.nbytes for p in delta.parameters())
    assert kept_bytes(lambda: convolution(stock, act(x), [delta]), stock) <= floor + own


@pytest.mark.parametrize("name", ["hra", "adapter"])
def test_beside_a_backbone_of_16_bits_no_wider_copy_is_kept(name: str) -> None:
    def kept(dtype: torch.dtype) -> int:
        model = adapt(
            vit(embed_dim=48, depth=2)().to(dtype).train(),
            name,
            **({"rank": 2} if name == "hra" else {"bottleneck": 4}),
        )
        x = torch.randn(8, 3, 32, 32, dtype=dtype)
        return kept_bytes(lambda: model(x).square().sum(), model)

    assert kept(torch.bfloat16) < 0.54 * kept(torch.float32)  # 0.57 and 0.58 with one
