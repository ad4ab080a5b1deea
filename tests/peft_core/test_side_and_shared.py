"""Side networks, shared tensors and prompts on rotary models, also in threads, on shards, replicas and copies."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from peft_core import PeftError, adapt, count_parameters, lifecycle, load_adapter, save_adapter, set_scale
from peft_core.grafts.attention import KeysValues
from peft_core.grafts.shared import Shared
from peft_core.method import Method, Plan
from tests.tiny import MODELS, vit

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("vera", {"rank": 4}),
    ("conv_pass", {"bottleneck": 4}),
    ("prefix", {"tokens": 3}),
    ("prefix", {"tokens": 3, "reparameterize": True, "hidden": 5}),
    ("lst", {"reduction": 4, "skip": None}),
    ("arc", {"bottleneck": 6, "dropout": 0.0}),
    ("bi_lora", {"rank": 2, "alpha": 20.0, "dropout": 0.0}),
]
each_method = pytest.mark.parametrize(("method", "hyper"), SETTINGS, ids=lambda v: v if isinstance(v, str) else "")
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def made(method: str, hyper: dict[str, Any], stock: nn.Module | None = None) -> nn.Module:
    model = adapt(MODELS["vit"].model() if stock is None else stock, method, **hyper).eval()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in sorted((k, p) for k, p in model.named_parameters() if p.requires_grad):
            p += torch.randn(p.shape, generator=g) * 0.1
    return model


@each_method
def test_threads_and_copies(method: str, hyper: dict[str, Any]):
    model = made(method, hyper)
    inputs = [torch.randn(2, 3, 32, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: torch.no_grad()(model)(x), inputs * 4))
    assert all(torch.equal(y, expected[i % 8]) for i, y in enumerate(found))
    model.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        model(inputs[0])
    model.head._forward_pre_hooks.clear()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "peft" in key:
                    parameter += 1  # a twin has its own
            assert torch.equal(twin(inputs[0]), expected[0]) and not torch.equal(model(inputs[0]), expected[0])
            for key, parameter in model.named_parameters():
                if "peft" in key:
                    parameter -= 1
            model.load_state_dict(twin.state_dict())


@each_method
def test_a_replica_uses_its_own_tensors(method: str, hyper: dict[str, Any]):
    """As nn.DataParallel makes replicas: dictionaries copied, tensors of another device in place of parameters."""
    model = made(method, hyper)
    replicas = {id(module): module._replicate_for_data_parallel() for module in model.modules()}
    for module in model.modules():
        replica = replicas[id(module)]
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[id(child)]
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    replica.__dict__[name] = None
                    getattr(replica, kind).pop(name, None)
                    object.__setattr__(replica, name, tensor.detach().clone())
    replica = replicas[id(model)]
    assert torch.equal(replica(PICTURES), model(PICTURES))
    with torch.no_grad():
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    tensor.fill_(float("nan"))  # whoever still reads the first device's tensors sees it
    assert torch.isfinite(replica(PICTURES)).all()


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@each_method
def test_sharded_by_fsdp2(method: str, hyper: dict[str, Any], one_process):
    whole, sharded = made(method, hyper), made(method, hyper)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    torch.testing.assert_close(sharded(PICTURES), whole(PICTURES))
    gradients = []
    for model in (whole, sharded):
        model(PICTURES).square().sum().backward()
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        gradients.append({k: g.full_tensor() if hasattr(g, "full_tensor") else g for k, g in found.items()})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 2
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5)


def test_shared_tensors_stand_once(tmp_path):
    model = made("prefix", {"tokens": 3, "reparameterize": True, "hidden": 5})
    holders = [m for m in model.modules() if isinstance(m, Shared)]
    keys = [key for key in model.state_dict() if "shared" in key]
    assert len(holders) == 2 and keys == [
        f"peft.prefix.shared_{k}" for k in ("E_48_3.value", "W1_48.value.weight", "W1_48.value.bias")
    ]
    model.to(torch.float64)
    assert model.double()(PICTURES.double()).dtype == torch.float64
    frozen = made("vera", {"rank": 4})
    assert not any("shared" in key for key in frozen.state_dict())  # it comes again from the seed
    save_adapter(frozen, tmp_path)
    again = load_adapter(MODELS["vit"].model().eval(), tmp_path)
    assert torch.equal(again(PICTURES), frozen(PICTURES))
    other = made("vera", {"rank": 4, "seed": 1})
    assert not torch.equal(other.peft.vera.shared_A.value, frozen.peft.vera.shared_A.value)
    both = adapt(adapt(MODELS["vit"].model(), "vera", rank=4), "vera", rank=4, seed=1, name="second")
    assert not torch.equal(both.peft.vera.shared_A.value, both.peft.second.shared_A.value)


def test_vera_is_its_formula_and_takes_the_first_rows_and_columns():
    model, x = made("vera", {"rank": 4, "targets": ("qkv", "fc1", "fc2")}), torch.randn(2, 5, 48)
    a, b = model.peft.vera.shared_A.value, model.peft.vera.shared_B.value
    assert a.shape == (4, 192) and b.shape == (192, 4)
    fc1, stock = model.blocks[1].mlp.fc1, MODELS["vit"].model().blocks[1].mlp.fc1
    change = fc1.peft.vera.fc1
    expected = stock(x) + change.b * ((x @ a[:, :48].T * change.d) @ b.T)
    torch.testing.assert_close(fc1(x), expected, rtol=1e-5, atol=1e-5)
    assert (adapt(MODELS["vit"].model(), "vera").blocks[0].attn.qkv.peft.vera.q.d == 0.1).all()


def test_conv_pass_is_its_formula():
    """As JieShibo/PETL-ViT's: from norm x, beside attention and MLP, the class token convolved as a picture of its own."""
    model, stock = made("conv_pass", {"bottleneck": 4, "scale": 0.3}), MODELS["vit"].model().eval()
    block, plain, x = model.blocks[0], stock.blocks[0], torch.randn(2, 17, 48)

    def branch(kind: str, number: int, z: Tensor) -> Tensor:
        p = block.get_submodule(f"drop_path{number}").peft.conv_pass[f"{kind}_branch"].change
        quick = lambda h: h * torch.sigmoid(1.702 * h)  # noqa: E731
        h = quick(p.down(z))
        first = p.conv(h[:, :1].reshape(2, 1, 1, 4).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(2, 1, 4)
        rest = p.conv(h[:, 1:].reshape(2, 4, 4, 4).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(2, 16, 4)
        return 0.3 * p.up(quick(torch.cat((first, rest), 1)))

    middle = x + plain.attn(plain.norm1(x)) + branch("attn", 1, plain.norm1(x))
    expected = middle + plain.mlp(plain.norm2(middle)) + branch("mlp", 2, plain.norm2(middle))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(PeftError, match="4 × 4 patches: 9 tokens came"):
        block(torch.randn(2, 9, 48))


@pytest.mark.parametrize("swin", [True, False])
def test_conv_pass_sees_the_whole_picture_where_attention_sees_windows(swin: bool):
    make = dict(img_size=56, embed_dim=12, depths=(2,), num_heads=(2,), num_classes=5)
    model = made("conv_pass", {"bottleneck": 4}, timm.create_model("swin_tiny_patch4_window7_224", **make))
    block, x = model.layers[0].blocks[1], torch.randn(1, 14, 14, 12)
    change = block.drop_path1.peft.conv_pass.attn_branch.change
    seen: list[Tensor] = []
    change.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(x)
    torch.testing.assert_close(seen[0], block.norm1(x))


def test_the_frozen_model_never_runs_backward():
    model = adapt(MODELS["vit"].model().train(), "lst", reduction=4, skip=None)
    reached: list[str] = []
    for name, module in model.named_modules():
        if name.startswith("blocks.") and "peft" not in name.split("."):
            module.register_forward_hook(lambda m, a, y, name=name: reached.append(name) if y.requires_grad else None)
    model(PICTURES).square().sum().backward()
    assert reached == ["blocks.2"]  # what the last block gives is the ladder's
    nodes, todo = set(), [model(PICTURES).sum().grad_fn]
    while todo:
        if (node := todo.pop()) is not None and node not in nodes:
            nodes.add(node)
            todo += [before for before, _ in node.next_functions]
    leaves = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    assert leaves == {id(p) for p in model.parameters() if p.requires_grad}
    inside = {id(p) for k, p in model.named_parameters() if "peft" in k or k.startswith("head")}
    assert leaves == inside


def test_the_ladder_is_its_formula():
    model, stock = made("lst", {"reduction": 4, "skip": 2}), MODELS["vit"].model().eval()
    net = model.blocks[2].peft.lst.side.net
    x = stock.norm_pre(stock._pos_embed(stock.patch_embed(PICTURES)))
    s = net.first(x)
    for i, block in enumerate(stock.blocks):
        x = block(x)
        if i == 1:  # 0 and 2 are left out
            mu = torch.sigmoid(net.gates[0] / 0.1)
            s = net.blocks[0](mu * s + (1 - mu) * net.downs[0](x))
    torch.testing.assert_close(model(PICTURES), model.forward_head(stock.norm(net.up(s))), rtol=1e-5, atol=1e-5)
    assert count_parameters(adapt(vit(depth=1)(), "lst", reduction=4)).inserted > 0
    with pytest.raises(PeftError, match="one stream all through"):
        adapt(MODELS["unet"].model(), "lst")
    with pytest.raises(PeftError, match="scale is 0 or 1"):
        set_scale(model, 0.5)


def test_a_causal_tower_keeps_a_causal_ladder():
    tiny = MODELS["clip_text_model"]
    model = made("lst", {"reduction": 4, "skip": None}, tiny.model())
    batch = tiny.batch()
    first = model(**batch).last_hidden_state
    batch["input_ids"][:, 6:-1] = 5
    later = model(**batch).last_hidden_state
    assert torch.equal(first[:, :6], later[:, :6]) and not torch.equal(first[:, 6:], later[:, 6:])


@dataclass(frozen=True, kw_only=True)
class Beside(Method):
    """A side network whose result is added."""

    def install(self, plan: Plan) -> None:
        stream = plan.stream(None)
        plan.add_side(plan.anatomy.blocks[None][1:], Sum(), "norm", stream, adds=True)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, features: list[Tensor]) -> Tensor:
        assert not any(feature.requires_grad for feature in features)
        return sum(w * feature for w, feature in zip(self.weight, features, strict=True))


def test_a_side_network_may_add():
    model, stock = adapt(MODELS["vit"].model(), Beside()).eval(), MODELS["vit"].model().eval()
    h1 = stock.blocks[0](stock.norm_pre(stock._pos_embed(stock.patch_embed(PICTURES))))
    h2 = stock.blocks[1](h1)
    y = stock.norm(stock.blocks[2](h2))
    for scale in (1.0, 0.25):
        set_scale(model, scale)
        torch.testing.assert_close(model(PICTURES), stock.forward_head(y + scale * (h1 + h2 + y)))


def test_a_reparameterized_prefix_is_folded_when_training_ends(tmp_path):
    model = made("prefix", {"tokens": 3, "reparameterize": True, "hidden": 5})
    y, before = model(PICTURES), count_parameters(model).inserted
    lifecycle.finish(model)
    assert torch.equal(model(PICTURES), y)
    assert count_parameters(model).inserted == 3 * 2 * 3 * 48 < before and "peft" not in model._modules
    assert all(isinstance(m.make, nn.Module) for m in model.modules() if isinstance(m, KeysValues))
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(MODELS["vit"].model().eval(), tmp_path)(PICTURES), y)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384"])
@pytest.mark.parametrize("deep", [False, True])
def test_prompts_on_rotary_models_are_turned_by_no_angle(name: str, deep: bool):
    """timm's own way: so many more tokens that are no patches."""
    settings: dict[str, Any] = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    settings |= {"patch_size": 8} if "eva02" in name else {}
    torch.manual_seed(0)
    stock = timm.create_model(name, **settings).eval()
    model = adapt(copy.deepcopy(stock), "vpt", tokens=3, deep=deep).eval()
    prefix, prompts = stock.num_prefix_tokens, [b.peft.vpt.tokens.tokens for b in model.blocks]
    for block in stock.blocks:
        block.attn.num_prefix_tokens += 3
    x, rope = stock._pos_embed(stock.patch_embed(PICTURES))
    x = stock.norm_pre(x)
    for i, block in enumerate(stock.blocks):
        if deep or i == 0:
            own = prompts[i].expand(2, -1, -1)
            x = torch.cat((x[:, :prefix], own, x[:, prefix if i == 0 else prefix + 3 :]), 1)
        x = block(x, rope=rope)
    x = torch.cat((x[:, :prefix], x[:, prefix + 3 :]), 1)
    torch.testing.assert_close(model(PICTURES), stock.forward_head(stock.norm(x)), rtol=1e-5, atol=1e-5)
