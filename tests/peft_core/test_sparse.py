"""The sparse weight change: its kernels against plain operations, what it keeps, its files, its budgets."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_core import PeftError, adapt, load_adapter, merge, save_adapter
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.kernels import sparse
from peft_core.lifecycle import own_grafts
from peft_core.parts.selection.budget import allot, largest, largest_a_row
from peft_core.parts.sparse import Sparse
from tests.tiny import MODELS, vit


def change(weight: Tensor, rows: tuple[int, int] | None, entries: int, of_bias: int | None = None) -> Sparse:
    out = weight.shape[0] if rows is None else rows[1] - rows[0]
    inner = weight[0].numel()
    made = Sparse(
        weight, rows, (out, inner), torch.randperm(out * inner)[:entries],
        None if of_bias is None else torch.randperm(out)[:of_bias],
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Sparse]) -> Tensor:
    return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))  # type: ignore[arg-type]


def gradients_of(run: Any, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(run(), inputs, grad))


@pytest.mark.parametrize("tokens", [3, 700])  # one piece, several chunks of one
@pytest.mark.parametrize("entries", [(0, 5), (9, 2000)])  # none and few; dot products and the dense product
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_linear_kernel_equals_plain_operations(tokens: int, entries: tuple[int, int], factor: float):
    torch.manual_seed(0)
    weight, bias = torch.randn(120, 50), torch.randn(120)
    x, grad = torch.randn(2, tokens, 50, requires_grad=True), torch.randn(2, tokens, 120)
    deltas = [change(weight, (0, 40), entries[0], 3), change(weight, (80, 120), entries[1])]
    for delta in deltas:
        delta.factor = factor
    inputs = [x, *(p for delta in deltas for p in delta.parameters())]
    torch.testing.assert_close(Sparse.kernel(x, weight, bias, deltas), plain(x, weight, bias, deltas))
    ours = gradients_of(lambda: Sparse.kernel(x, weight, bias, deltas), inputs, grad)
    theirs = gradients_of(lambda: plain(x, weight, bias, deltas), inputs, grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_stock_weight_that_trains_gets_its_own_gradient():
    torch.manual_seed(0)
    weight, x, grad = torch.randn(8, 6, requires_grad=True), torch.randn(5, 6), torch.randn(5, 8)
    delta = change(weight, None, 4)
    inputs = [weight, delta.values]
    ours = gradients_of(lambda: Sparse.kernel(x, weight, None, [delta]), inputs, grad)
    torch.testing.assert_close(ours, gradients_of(lambda: plain(x, weight, None, [delta]), inputs, grad))


@pytest.mark.parametrize(("size", "groups", "stride"), [(3, 1, 1), (1, 1, 1), (3, 4, 2)])
def test_convolution_kernel_equals_plain_operations(size: int, groups: int, stride: int):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, size, stride=stride, padding=size // 2, groups=groups)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    delta = change(layer.weight.detach(), None, 20, 5)
    layer.requires_grad_(False)
    y = Sparse.conv_kernel(layer, x, delta)
    expected = layer._conv_forward(x, delta(layer.weight), delta.bias(layer.bias))
    torch.testing.assert_close(y, expected)
    inputs = [x, *delta.parameters()]
    ours, theirs = (list(torch.autograd.grad(out.square().sum(), inputs)) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_and_per_sample_gradients():
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4), torch.randn(6)
    x = torch.randn(3, 4, requires_grad=True)
    delta = change(weight, None, 5, 2)

    def second(run: Any) -> Tensor:
        (dx,) = torch.autograd.grad(run(x, weight, bias, [delta]).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), delta.values)[0]

    torch.testing.assert_close(second(Sparse.kernel), second(plain))

    model = adapt(vit(depth=1)(), "shira", rank=2, targets=("attn", "mlp"))
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    pictures = torch.randn(3, 3, 32, 32)

    def of_one(parameters: dict[str, Tensor], picture: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (picture[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(trained, pictures)
    model(pictures).square().sum().backward()
    for key, parameter in trained.items():
        torch.testing.assert_close(each[key].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)


def test_autocast_checkpointing_and_compile():
    torch.manual_seed(0)
    model = adapt(vit(depth=1)(), "shira", rank=4, targets=("attn", "mlp", "patch_embed")).train()
    x = torch.randn(2, 3, 32, 32)

    def grads(run: Any) -> list[Tensor]:
        model.zero_grad()
        run(x).float().square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = grads(model)
    torch.testing.assert_close(grads(lambda x: checkpoint(model, x, use_reentrant=False)), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(grads(compiled), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        halved = grads(model)
    for one, other in zip(halved, expected, strict=True):
        assert one.dtype == torch.float32 and (one - other).norm() < 0.1 * other.norm()


def test_beside_a_quantised_weight_and_beside_lora():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 4), torch.randn(3, 4)
    delta = change(weight, None, 5, 2)
    y = F.linear(x, weight) + delta.on_input(x, F.linear)
    torch.testing.assert_close(y, plain(x, weight, torch.zeros(6), [delta]))
    family = MODELS["unet"]
    model = adapt(adapt(family.model(), "shira", rank=2, targets=("conv", "q")), "lora", rank=2, targets=("conv", "q"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    y = family(model.eval())
    torch.testing.assert_close(family(merge(model)), y, rtol=1e-4, atol=1e-4)


def test_few_entries_take_no_dense_product(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("formed the dense gradient")

    monkeypatch.setattr(sparse, "product", refuse)
    monkeypatch.setattr(sparse, "gathered", refuse)
    weight, x = torch.randn(60, 50), torch.randn(20, 50)
    delta = change(weight, None, 30)
    Sparse.kernel(x, weight, None, [delta]).sum().backward()
    assert delta.values.grad is not None


# ---- files and budgets -----------------------------------------------------------------------------------------------


def test_a_file_decides_the_sizes(tmp_path):
    torch.manual_seed(0)
    model = adapt(vit(depth=1)(), "shira", rank=2)
    for delta in model.blocks[0].attn.qkv.peft.shira.values():
        known = delta.values
        delta.choose(torch.tensor([40, 3, 7]), values=torch.tensor([1.0, 2.0, 3.0]))
        assert delta.values is known and delta.indices.tolist() == [3, 7, 40]
        assert delta.values.tolist() == [2.0, 3.0, 1.0]  # values follow their entries
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    again = load_adapter(vit(depth=1)(), tmp_path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(x), model.eval()(x))

    tensors = load_file(tmp_path / "adapter.safetensors")
    key = "blocks.0.attn.qkv.peft.shira.q.indices"
    for wrong, words in (([3, 7, 2304], "stay below 2,304"), ([7, 3, 40], "must ascend"), ([3, 7], "of one length")):
        save_file(tensors | {key: torch.tensor(wrong, dtype=torch.int32)}, tmp_path / "adapter.safetensors")
        with pytest.raises(PeftError, match=words):
            load_adapter(vit(depth=1)(), tmp_path)


def test_a_choice_that_is_open_says_which_call_makes_it():
    weight = torch.randn(6, 4)
    delta = Sparse(weight, None, (6, 4), 3)
    with pytest.raises(PeftError, match=r"peft_core.lifecycle.prepare\(model, losses\)"):
        Sparse.kernel(torch.randn(2, 4), weight, None, [delta])
    again = Sparse(weight, None, (6, 4), 1)
    again.load_state_dict(delta.state_dict())
    assert not again.chosen
    delta.choose(torch.tensor([1, 2]))
    again.load_state_dict(delta.state_dict())
    assert again.chosen and again.indices.tolist() == [1, 2]


def test_budgets_are_exact():
    assert allot(10, [3, 3, 4]) == [3, 3, 4] and sum(allot(7, [5, 100, 1])) == 7
    scores = [torch.tensor([[1.0, 9.0], [8.0, 2.0]]), torch.tensor([7.0, 7.0, 7.0])]
    assert [each.tolist() for each in largest(scores, 2)] == [[1, 2], []]
    found = largest(scores, 4)  # of equal ones as many as there is room for
    assert found[0].tolist() == [1, 2] and len(found[1]) == 2
    assert largest_a_row(scores[0], 1).tolist() == [1, 2]


def test_budgets_above_the_model_are_refused():
    with pytest.raises(PeftError, match=r"asks for 3,072 entries at blocks.0.attn.qkv, above the weight's 2,304"):
        adapt(vit()(), "shira", rank=32)
    with pytest.raises(PeftError, match=r"per_row 49, which asks for 49 entries .* above the 48 of a row"):
        adapt(vit()(), "shira", per_row=49)
    with pytest.raises(PeftError, match=r"pafi got 90,000 entries, above the 82,944 that it may change here"):
        adapt(vit()(), "pafi", entries=90_000, targets=("attn", "mlp"))


def test_masks_by_size():
    model = vit()()
    weight = model.blocks[1].mlp.fc1.weight.detach()
    adapt(model, "shira", per_row=2, mask="magnitude", targets=("fc1",))
    delta = model.blocks[1].mlp.fc1.peft.shira.fc1
    mask = torch.zeros(weight.numel()).index_fill(0, delta.indices.long(), 1).view_as(weight)
    assert (mask.sum(1) == 2).all()
    assert (weight.abs() * mask).amax(1).equal(weight.abs().amax(1))

    model = vit()()
    stock = torch.cat([block.mlp.fc1.weight.detach().abs().flatten() for block in model.blocks])
    adapt(model, "pafi", entries=40, targets=("fc1",))
    (adaptation,) = model.__dict__["_peft_record"].adaptations.values()
    grafts = list(own_grafts(model, adaptation.method))
    chosen = [
        b.mlp.fc1.weight.detach().flatten()[g.indices.long()].abs() for b, g in zip(model.blocks, grafts, strict=True)
    ]
    assert torch.cat(chosen).sort().values.equal(stock.sort().values[:40])
