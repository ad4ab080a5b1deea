"""Adapters and mixtures against the papers' equations written out block by block, in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from peft_core import PeftError, adapt, count_parameters, lifecycle, load_adapter, save_adapter
from peft_core.methods.adapters import ada_mix
from peft_core.testing import perturb
from tests.peft_core.test_made_prompts import DEPTH, DIM, X, adapted, vit, walk


def mixed(y: Tensor, mixture: nn.Module, heads: int) -> Tensor:
    """Each token and head by itself."""
    vectors, router = 1 + mixture.vectors, mixture.router
    parts = y.unflatten(-1, (heads, -1)).clone()
    for head in range(heads):
        share = torch.softmax(parts[..., head, :] @ router.t(), -1)
        parts[..., head, :] = parts[..., head, :] * (share @ vectors[head])
    return parts.flatten(-2)


def test_mov_mixes_vectors_for_each_token_and_head() -> None:
    model, stock, grafts = adapted("mov", experts=3)

    def block(index: int, x: Tensor) -> Tensor:
        layer, of = stock.blocks[index], lambda name: grafts[f"blocks.{index}.{name}"]
        q, k, v = layer.attn.qkv(layer.norm1(x)).chunk(3, -1)
        k, v = mixed(k, of("attn.qkv/k").mixture, 2), mixed(v, of("attn.qkv/v").mixture, 2)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v))
        x = x + layer.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + layer.mlp.fc2(mixed(F.gelu(layer.mlp.fc1(layer.norm2(x))), of("mlp.fc2/fc2").change, 1))

    torch.testing.assert_close(model(X), walk(stock, block))


@pytest.mark.parametrize("position", ["series", "linears"])
def test_llm_adapters_forms(position: str) -> None:
    model, stock, grafts = adapted(
        "adapter", position=position, bottleneck=3, activation="tanh", bias=False, init="normal", scale=2.0
    )

    def added(path: str, x: Tensor) -> Tensor:
        change = grafts[path].change
        assert change.down.bias is None and change.up.bias is None
        return 2.0 * torch.tanh(x @ change.down.weight.t()) @ change.up.weight.t()

    def block(index: int, x: Tensor) -> Tensor:
        layer, at = stock.blocks[index], f"blocks.{index}.mlp"
        x = x + layer.attn(layer.norm1(x))
        inner = layer.norm2(x)
        if position == "series":
            return x + layer.mlp(inner + added(f"{at}.fc1/before", inner))
        hidden = F.gelu(layer.mlp.fc1(inner) + added(f"{at}.fc1/fc1_beside", inner))
        return x + layer.mlp.fc2(hidden) + added(f"{at}.fc2/fc2_beside", hidden)

    torch.testing.assert_close(model(X), walk(stock, block))


def test_sct_says_that_channels_are_not_chosen() -> None:
    with pytest.raises(PeftError, match="call peft_core.lifecycle.prepare"):
        adapt(vit().float(), "sct", channels=3)(X.float())
    with pytest.raises(PeftError, match=f"above the layer's width {DIM}"):
        adapt(vit(), "sct", channels=DIM + 1)


def test_ada_mix_draws_adds_the_second_forwards_divergence_and_ends_as_the_mean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, stock, grafts = adapted("ada_mix", bottleneck=3, experts=3, init="normal", consistency=2.0)
    changes = [grafts[f"blocks.{n}.drop_path2/output"].change for n in range(DEPTH)]

    def out(chosen: Callable[[Tensor, int], Tensor]) -> Tensor:
        def block(index: int, x: Tensor) -> Tensor:
            layer, of = stock.blocks[index], changes[index]
            x = x + layer.attn(layer.norm1(x))
            m = layer.mlp(layer.norm2(x))
            inner = F.gelu(m @ chosen(of.down, index).t() + chosen(of.down_bias, index))
            return x + m + inner @ of.up.t() + of.up_bias

        return walk(stock, block)

    mean = out(lambda stack, _: stack.mean(0))
    torch.testing.assert_close(model(X), mean)
    routes, drawn = [[0, 2, 1, 0], [2, 2, 0, 1]], iter([0, 2, 1, 0, 2, 2, 0, 1])
    monkeypatch.setattr(ada_mix, "drawn", lambda count, device: torch.tensor([next(drawn)]))
    y = model.train()(X)
    first, second = (out(lambda stack, index, route=route: stack[route[index]]) for route in routes)
    torch.testing.assert_close(y, first)
    p, q = first.softmax(-1), second.softmax(-1)
    divergence = (p * (p / q).log() + q * (q / p).log()).sum(-1).mean()
    penalty = lifecycle.penalty(model)
    torch.testing.assert_close(penalty, divergence, check_dtype=False, rtol=1e-5, atol=1e-6)  # 2 · ½
    with pytest.raises(PeftError, match="call the model itself before the penalty"):
        lifecycle.penalty(model)
    before = count_parameters(model).inserted
    lifecycle.finish(model.eval())
    torch.testing.assert_close(model(X), mean)
    assert count_parameters(model).inserted == before - DEPTH * 2 * (3 * DIM + 3)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(vit(), tmp_path).eval()(X), mean)


def test_the_file_of_pro_petl_holds_bits(tmp_path: Path) -> None:
    model = adapt(vit(), "pro_petl", bottleneck=3)
    perturb(model)
    groups = lifecycle.parameter_groups(model, 1e-3, 0.0)
    assert sorted({group["lr"] for group in groups}) == [1e-3, 3e-3]
    lifecycle.finish(model.eval())
    save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter.safetensors", framework="pt") as file:
        masks = [file.get_tensor(key) for key in file.keys() if key.endswith("bits")]
    assert len(masks) == 2 * DEPTH and all(mask.dtype == torch.uint8 and mask.numel() == 3 * DIM // 8 for mask in masks)
    again = load_adapter(vit(), tmp_path).eval()
    torch.testing.assert_close(again(X), model(X), rtol=0, atol=0)
    assert count_parameters(again).inserted == 2 * 3 * DIM + 3 + DIM


def test_lo_rand_sums_branches_under_shared_kernels() -> None:
    model, stock, grafts = adapted("lo_rand", branches=3, rank=2)

    def added(index: int, step: int, y: Tensor) -> Tensor:
        of = grafts[f"blocks.{index}.drop_path{step}/output"].change
        down = torch.einsum("adb,abc,ach->hd", of.down_left, of.kernel, of.down_right)
        up = torch.einsum("ahb,abc,acd->dh", of.up_left, of.kernel, of.up_right)
        assert down.shape == (DIM // 2, DIM)
        return y + F.gelu(y @ down.t() + of.down_bias) @ up.t() + of.up_bias

    def block(index: int, x: Tensor) -> Tensor:
        layer = stock.blocks[index]
        x = x + added(index, 1, layer.attn(layer.norm1(x)))
        return x + added(index, 2, layer.mlp(layer.norm2(x)))

    torch.testing.assert_close(model(X), walk(stock, block))
    with torch.device("meta"):
        swin = timm.create_model("swin_base_patch4_window7_224", num_classes=0)
    assert count_parameters(adapt(swin, "lo_rand")).inserted == 1_197_312  # 1.20 M in the paper
    with pytest.raises(PeftError, match="below the rank 8: lower either"):
        adapt(vit(), "lo_rand", reduction=4)
