"""Weight changes against Hugging Face PEFT and LyCORIS: same parameters, same output, same gradients."""

import pytest
import torch
import torch.nn.functional as F
from lycoris.functional import general, loha, lokr
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from torch import Tensor, nn

from peft_core import adapt
from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import linear
from peft_core.methods.reparameterized.lokr import LoKr
from peft_core.methods.reparameterized.oft import Rotation, nearest_divisor
from peft_core.parts.decomposed import Decomposed
from peft_core.parts.factors import split_dimension
from peft_core.parts.hadamard import Hadamard
from peft_core.parts.lowrank import LowRank
from peft_core.parts.scaling import InputScale, OutputScale
from tests.tiny import MODELS

OUT, IN, RANK, ALPHA = 24, 16, 2, 3.0


class Net(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT) if kind == "linear" else nn.Conv2d(IN, OUT, 3, padding=1)


def batch(kind: str) -> Tensor:
    return torch.randn(3, 5, IN) if kind == "linear" else torch.randn(2, IN, 5, 5)


def run(stock: nn.Module, x: Tensor, delta: Delta) -> Tensor:
    if isinstance(stock, nn.Linear):
        return linear(x, stock.weight, stock.bias, [delta])
    return F.conv2d(x, delta(stock.weight), delta.bias(stock.bias), padding=1)


def randomise(delta: Delta, std: float = 0.3) -> None:
    for parameter in delta.parameters():
        parameter.data.add_(torch.randn_like(parameter) * std)


def compare_with_peft(kind: str, config, delta: Delta, stock: nn.Module, names: dict[str, str],
                      gradients: bool = True) -> None:  # fmt: skip
    """names: our parameter -> the path below `layer` of theirs."""
    randomise(delta)
    net = Net(layer(kind))
    inject_adapter_in_model(config, net)
    theirs = {path: net.layer.get_parameter(path) for path in names.values()}
    assert {id(p) for p in theirs.values()} == {id(p) for p in net.parameters() if p.requires_grad}
    for ours, path in names.items():
        theirs[path].data.copy_(getattr(delta, ours).detach().view_as(theirs[path]))
    torch.manual_seed(1)
    x = batch(kind).requires_grad_()
    y, other = run(stock.requires_grad_(False), x, delta), net.layer(x)
    torch.testing.assert_close(y, other, rtol=1e-5, atol=1e-5)
    if not gradients:
        return
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *(getattr(delta, name) for name in names)], g)
    peers = torch.autograd.grad(other, [x, *theirs.values()], g)
    for one, peer in zip(ours, peers, strict=True):
        torch.testing.assert_close(one, peer.view_as(one), rtol=1e-4, atol=1e-4)


BOTH = pytest.mark.parametrize("kind", ["linear", "conv"])


@BOTH
@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_as_in_peft(kind: str, dora: bool):
    stock = layer(kind)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], use_dora=dora)
    names = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    if dora:
        delta: Delta = Decomposed(stock.weight, None, RANK, ALPHA / RANK, stock.weight)
        names["magnitude"] = "lora_magnitude_vector.default.weight"
    else:
        delta = LowRank(stock.weight, None, RANK, ALPHA / RANK)
    compare_with_peft(kind, config, delta, stock, names)


@BOTH
@pytest.mark.parametrize("cores", [False, True])
def test_loha_as_in_peft(kind: str, cores: bool):
    stock = layer(kind)
    config = LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["layer"], use_effective_conv2d=cores)
    names = {f"w{i}_{ab}": f"hada_w{i}_{ab}.default" for i in (1, 2) for ab in "ab"}
    with_cores = cores and kind == "conv"
    if with_cores:
        names |= {"t1": "hada_t1.default", "t2": "hada_t2.default"}
    delta = Hadamard(stock.weight, None, RANK, ALPHA / RANK, cores)
    # PEFT's hand-written backward of the Tucker form mixes its two halves up; LyCORIS (below) has it right
    compare_with_peft(kind, config, delta, stock, names, gradients=not with_cores)


@BOTH
@pytest.mark.parametrize(
    "factor, both, full, cores",
    [(-1, False, False, False), (4, False, False, True), (3, True, False, False), (-1, False, True, False)],
)
def test_lokr_as_in_peft(kind: str, factor: int, both: bool, full: bool, cores: bool):
    stock, rank = layer(kind), 12 if full else 1
    alpha = rank if full else ALPHA  # PEFT weighs two whole matrices by alpha/rank, LyCORIS (and we) by 1
    config = LoKrConfig(r=rank, alpha=alpha, target_modules=["layer"], decompose_factor=factor, decompose_both=both,
                        use_effective_conv2d=cores)  # fmt: skip
    settings = LoKr(rank=rank, alpha=alpha, factor=factor, decompose_both=both, tucker=cores)
    delta = settings.change(stock.weight, None, rank)
    names = {name: f"lokr_{name}.default" for name, _ in delta.named_parameters()}
    compare_with_peft(kind, config, delta, stock, names)


@pytest.mark.parametrize("block", [4, 8, 5])
def test_oft_as_in_peft(block: int):
    stock = layer("linear")
    config = OFTConfig(r=0, oft_block_size=block, target_modules=["layer"], num_cayley_neumann_terms=5)
    delta = Rotation(stock.weight, None, nearest_divisor(IN, block), terms=5)
    compare_with_peft("linear", config, delta, stock, {"vectors": "oft_R.default.weight"})


def test_oft_series_approaches_the_exact_rotation():
    weight = torch.randn(6, 8, dtype=torch.float64)
    exact, series = Rotation(weight, None, 4, terms=0), Rotation(weight, None, 4, terms=40)
    nn.init.normal_(exact.vectors, std=0.1)
    series.vectors.data.copy_(exact.vectors)
    torch.testing.assert_close(exact.blocks(), series.blocks())
    torch.testing.assert_close(exact.blocks() @ exact.blocks().mT, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    torch.testing.assert_close(exact(weight).norm(dim=1), weight.norm(dim=1))


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_as_in_peft(feedforward: bool):
    stock = layer("linear")
    config = IA3Config(target_modules=["layer"], feedforward_modules=["layer"] if feedforward else [])
    delta = (InputScale if feedforward else OutputScale)(stock.weight, None)
    compare_with_peft("linear", config, delta, stock, {"scale": "ia3_l.default"})


def gradients_equal(delta: Delta, names: list[str], change: Tensor, theirs: list[Tensor], weight: Tensor) -> None:
    ours = delta(weight)
    torch.testing.assert_close(ours, change)
    g = torch.randn_like(ours)
    for one, other in zip(torch.autograd.grad(ours, [getattr(delta, name) for name in names], g),
                          torch.autograd.grad(change, theirs, g), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other.view_as(one), rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("cores", [False, True])
def test_loha_as_in_lycoris(kind: str, cores: bool):
    weight = layer(kind).weight.detach()
    delta = Hadamard(weight, None, RANK, ALPHA / RANK, cores)
    randomise(delta)
    names = ["w1_b", "w1_a", "w2_b", "w2_a"] + (["t1", "t2"] if delta.t1 is not None else [])
    theirs = [getattr(delta, name).detach().clone().requires_grad_() for name in names]
    change = loha.diff_weight(*theirs, *[None] * (6 - len(theirs)), gamma=torch.tensor(ALPHA / RANK))
    gradients_equal(delta, names, weight + change.view_as(weight), theirs, weight)


@BOTH
@pytest.mark.parametrize("factor, both, cores", [(-1, False, False), (4, False, True), (3, True, False)])
def test_lokr_as_in_lycoris(kind: str, factor: int, both: bool, cores: bool):
    weight = layer(kind).weight.detach()
    settings = LoKr(rank=1, alpha=ALPHA, factor=factor, decompose_both=both, tucker=cores)
    delta = settings.change(weight, None, 1)
    randomise(delta)
    names = [name for name, _ in delta.named_parameters()]
    theirs = {name: getattr(delta, name).detach().clone().requires_grad_() for name in names}
    slots = [theirs.get(name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    if slots[5] is not None and slots[6] is None:
        slots[5] = slots[5].view(slots[5].shape[0], -1, *weight.shape[2:])
    change = lokr.kron_weight(*slots, scale=ALPHA)
    gradients_equal(delta, names, weight + change.view_as(weight), list(theirs.values()), weight)


@pytest.mark.parametrize("factor", [-1, 2, 4, 8, 16])
def test_dimensions_split_as_in_lycoris(factor: int):
    for size in [*range(1, 200), 250, 320, 360, 640, 768, 1280, 2048, 2560, 5120]:
        assert split_dimension(size, factor) == general.factorization(size, factor)


@BOTH
def test_dora_weighs_outputs_as_lycoris_does(kind: str):
    stock = layer(kind)
    delta = Decomposed(stock.weight, None, RANK, 1.5, stock.weight)
    randomise(delta)
    v = stock.weight + 1.5 * (delta.B @ delta.A).view_as(stock.weight)
    scale = delta.magnitude.view(-1, *[1] * (v.dim() - 1))
    torch.testing.assert_close(delta(stock.weight), general.weight_decompose(v, scale, wd_on_out=True))


@pytest.mark.parametrize("rows", [[None], [(0, 8), (16, 24)]])
@pytest.mark.parametrize("bias", [False, True])
def test_the_fast_dora_linear_equals_the_plain_one(rows: list, bias: bool):
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN, dtype=torch.float64)
    b = torch.randn(OUT, dtype=torch.float64, requires_grad=True) if bias else None
    x = torch.randn(3, 5, IN, dtype=torch.float64, requires_grad=True)
    deltas = [Decomposed(weight, r, RANK, 1.5, weight if r is None else weight[slice(*r)]) for r in rows]
    for delta in deltas:
        randomise(delta)
    leaves = [leaf for leaf in (x, b, *(p for delta in deltas for p in delta.parameters())) if leaf is not None]
    fast = linear(x, weight, b, deltas)  # type: ignore[arg-type]
    new = weight
    for delta, r in zip(deltas, rows, strict=True):
        start, stop = r or (0, OUT)
        new = torch.cat((new[:start], delta(new[start:stop]), new[stop:]))
    plain = F.linear(x, new, b)
    torch.testing.assert_close(fast, plain)
    g = torch.randn_like(fast)
    for one, other in zip(torch.autograd.grad(fast, leaves, g), torch.autograd.grad(plain, leaves, g), strict=True):
        torch.testing.assert_close(one, other)


def test_dora_trains_rows_of_zeros_without_nan():
    weight = torch.randn(OUT, IN)
    weight[3] = 0
    delta = Decomposed(weight, None, RANK, 1.0, weight)
    x = torch.randn(4, IN, requires_grad=True)
    y = linear(x, weight, None, [delta])
    assert torch.equal(y, F.linear(x, weight))
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in delta.parameters())


def test_dora_starts_from_what_an_earlier_adaptation_made():
    tiny = MODELS["vit"]
    model = adapt(tiny.model().eval(), "lora", rank=2, targets=("qkv", "fc1"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    y = tiny(model)
    adapt(model, "dora", rank=2, targets=("qkv", "fc1"))
    torch.testing.assert_close(tiny(model), y, rtol=1e-5, atol=1e-5)
