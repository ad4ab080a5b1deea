"""Each method equals its paper's equation, written out here block by block on timm's own modules.

Where a repository settles what a paper leaves open, it was read at: VPT KMnP/vpt 4410440, AdaptFormer ShoufaChen/AdaptFormer
6967d67, SSF dongzelian/SSF e94e0e7, Adapter+ visinf/adapter_plus 191c4ab, LoRA microsoft/LoRA's scale alpha / rank.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt, merge
from tests.tiny import MODELS, pictures

X = pictures()()["x"]


def stock() -> nn.Module:
    return MODELS["vit"].model().eval()


def adapted(method: str, **hyper) -> nn.Module:
    """With every adapter tensor away from its initial value."""
    model = adapt(stock(), method, **hyper).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            if ".peft." in key:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def embed(model: nn.Module) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(X))))


def run(model: nn.Module, block: Callable[[int, nn.Module, Tensor], Tensor]) -> Tensor:
    x = embed(model)
    for index, module in enumerate(model.blocks):
        x = block(index, module, x)
    return model.forward_head(model.norm(x))


def bottleneck(p, x: Tensor, activation) -> Tensor:
    """Up(act(Down x)) from an adapter's own tensors."""
    return F.linear(activation(F.linear(x, p.down.weight, p.down.bias)), p.up.weight, p.up.bias)


def test_lora_on_slices_of_qkv():
    model, frozen = adapted("lora", rank=3, alpha=6.0, targets=("q", "v")), stock()

    def block(index: int, b: nn.Module, x: Tensor) -> Tensor:
        lora = model.blocks[index].attn.qkv.peft.lora
        h = b.norm1(x)
        q, k, v = b.attn.qkv(h).chunk(3, -1)
        q = q + 6.0 / 3 * h @ lora.q.A.T @ lora.q.B.T
        v = v + 6.0 / 3 * h @ lora.v.A.T @ lora.v.B.T
        heads = [t.unflatten(-1, (3, 16)).transpose(1, 2) for t in (q, k, v)]
        scores = (heads[0] @ heads[1].mT / 16**0.5).softmax(-1)
        x = x + b.attn.proj((scores @ heads[2]).transpose(1, 2).flatten(2))
        return x + b.mlp(b.norm2(x))

    torch.testing.assert_close(model(X), run(frozen, block), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rs, scale", [(False, 5 / 4), (True, 5 / 4**0.5)])
def test_lora_scale(rs: bool, scale: float):
    model = adapted("lora", rank=4, alpha=5.0, rs=rs, targets="proj")
    lora, weight = model.blocks[0].attn.proj.peft.lora.proj, stock().blocks[0].attn.proj.weight
    expected = weight + scale * lora.B @ lora.A
    torch.testing.assert_close(merge(model).blocks[0].attn.proj.weight, expected)


def test_adaptformer_reads_the_stream_before_the_norm():
    model, frozen = adapted("adaptformer", bottleneck=4, scale=0.1, dropout=0.0), stock()

    def block(index: int, b: nn.Module, x: Tensor) -> Tensor:
        p = model.blocks[index].drop_path2.peft.adaptformer.mlp_branch.change
        x = x + b.attn(b.norm1(x))
        return x + b.mlp(b.norm2(x)) + 0.1 * bottleneck(p, x, F.relu)

    torch.testing.assert_close(model(X), run(frozen, block), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["houlsby", "pfeiffer", "parallel"])
def test_adapter_positions(position: str):
    model, frozen = adapted("adapter", bottleneck=4, position=position, scale=0.7), stock()

    def block(index: int, b: nn.Module, x: Tensor) -> Tensor:
        mine = model.blocks[index]
        y = b.attn(b.norm1(x))
        if position == "houlsby":
            y = y + 0.7 * bottleneck(mine.drop_path1.peft.adapter.output.change, y, F.gelu)
        x = x + y
        y = b.mlp(b.norm2(x))
        if position == "parallel":
            return x + y + 0.7 * bottleneck(mine.drop_path2.peft.adapter.mlp_branch.change, x, F.gelu)
        return x + y + 0.7 * bottleneck(mine.drop_path2.peft.adapter.output.change, y, F.gelu)

    torch.testing.assert_close(model(X), run(frozen, block), rtol=1e-5, atol=1e-5)


def test_adapter_plus_stands_behind_the_block_with_a_channel_scale():
    model, frozen = adapted("adapter_plus", bottleneck=4), stock()

    def block(index: int, b: nn.Module, x: Tensor) -> Tensor:
        p = model.blocks[index].peft.adapter_plus.output.change
        x = b(x)
        return x + p.gamma * bottleneck(p, x, F.gelu)

    torch.testing.assert_close(model(X), run(frozen, block), rtol=1e-5, atol=1e-5)


def test_adapter_plus_drops_whole_samples():
    model = adapted("adapter_plus", bottleneck=4, drop_path=0.5).train()
    change = model.blocks[0].peft.adapter_plus.output.change
    torch.manual_seed(0)
    x = torch.randn(200, 5, 48)
    y, whole = change(x), change.eval()(x)
    kept = y.flatten(1).abs().sum(1) > 0
    assert 60 < kept.sum() < 140
    torch.testing.assert_close(y[kept], 2 * whole[kept])


def test_ssf_scales_and_shifts_after_every_norm_linear_and_the_patch_embedding():
    model, frozen = adapted("ssf"), stock()

    def shift(module: nn.Module, role: str, y: Tensor) -> Tensor:
        p = getattr(module.peft.ssf, role)
        return y * p.gamma + p.beta

    def block(index: int, b: nn.Module, x: Tensor) -> Tensor:
        m = model.blocks[index]
        h = shift(m.norm1, "norm1", b.norm1(x))
        q, k, v = shift(m.attn.qkv, "qkv", b.attn.qkv(h)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (3, 16)).transpose(1, 2) for t in (q, k, v))
        heads = ((q @ k.mT / 16**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + shift(m.attn.proj, "proj", b.attn.proj(heads))
        h = F.gelu(shift(m.mlp.fc1, "fc1", b.mlp.fc1(shift(m.norm2, "norm2", b.norm2(x)))))
        return x + shift(m.mlp.fc2, "fc2", b.mlp.fc2(h))

    patches = frozen.patch_embed.proj(X).flatten(2).transpose(1, 2)
    patches = shift(model.patch_embed.proj, "patch_embed", patches)
    x = torch.cat([frozen.cls_token.expand(2, -1, -1), patches], 1) + frozen.pos_embed
    for index, b in enumerate(frozen.blocks):
        x = block(index, b, x)
    x = shift(model.norm, "norm", frozen.norm(x))
    torch.testing.assert_close(model(X), frozen.head(x[:, 0]), rtol=1e-4, atol=1e-5)


def test_vpt_shallow_and_deep():
    shallow, deep, frozen = adapted("vpt", tokens=3), adapted("vpt", tokens=3, deep=True), stock()

    def prompts(model: nn.Module, index: int) -> Tensor:
        return model.blocks[index].peft.vpt.tokens.tokens.expand(2, -1, -1)

    x = embed(frozen)
    x = torch.cat([x[:, :1], prompts(shallow, 0), x[:, 1:]], 1)
    for b in frozen.blocks:
        x = b(x)
    torch.testing.assert_close(shallow(X), frozen.head(frozen.norm(x)[:, 0]), rtol=1e-5, atol=1e-5)

    x = embed(frozen)
    for index, b in enumerate(frozen.blocks):
        x = torch.cat([x[:, :1], prompts(deep, index), x[:, -16:]], 1)
        x = b(x)
    torch.testing.assert_close(deep(X), frozen.head(frozen.norm(x)[:, 0]), rtol=1e-5, atol=1e-5)


def test_vpt_starts_uniform_with_the_papers_bound():
    torch.manual_seed(0)
    tokens = adapt(stock(), "vpt", tokens=200).blocks[0].peft.vpt.tokens.tokens
    bound = (6 / (3 * 8 * 8 + 48)) ** 0.5
    assert tokens.abs().max() <= bound and tokens.abs().max() > 0.98 * bound and tokens.mean().abs() < 0.02


def test_initial_values():
    torch.manual_seed(0)
    lora = adapt(stock(), "lora", rank=8, targets="fc2").blocks[0].mlp.fc2.peft.lora.fc2
    assert not lora.B.any() and lora.A.abs().max() <= (1 / 192) ** 0.5  # Kaiming-uniform, a = √5: bound 1/√in
    down = adapt(stock(), "adaptformer", bottleneck=8).blocks[0].drop_path2.peft.adaptformer.mlp_branch.change
    assert down.down.weight.abs().max() <= (1 / 48) ** 0.5 and down.down.weight.std() > 0.05
    assert not down.up.weight.any() and not down.up.bias.any() and not down.down.bias.any()
    ssf = adapt(stock(), "ssf").blocks[0].mlp.fc1.peft.ssf.fc1
    assert abs(ssf.gamma.mean() - 1) < 0.01 and 0.015 < ssf.gamma.std() < 0.025 and 0.015 < ssf.beta.std() < 0.025


def test_the_authors_starts() -> None:
    torch.manual_seed(0)
    plus = adapt(stock(), "adapter_plus", bottleneck=24, init="houlsby").blocks[0].peft.adapter_plus.output.change
    for weight in (plus.down.weight, plus.up.weight):  # N(0, 0.01²) truncated at 2σ: standard deviation 0.88 σ
        assert weight.abs().max() <= 0.02 and 0.0075 < weight.std() < 0.0095
    assert not plus.down.bias.any() and not plus.up.bias.any()
    for settings, start in (({}, 0.1), ({"scale": 0.3}, 0.3), ({"learn_scale": True}, 1.0)):
        model = adapt(stock(), "adaptformer", bottleneck=4, **settings)
        scale = model.blocks[0].drop_path2.peft.adaptformer.mlp_branch.change.scale
        assert torch.as_tensor(scale).item() == pytest.approx(start)
    model = adapt(stock(), "noah", widths={"vpt": [1, 10, 5], "lora": 2, "adapter": 2})
    tokens = [block.peft.noah.tokens.tokens for block in model.blocks]
    bound = (6 / (48 * 11)) ** 0.5  # Xavier over 10 × 48, the widest
    assert all(each.abs().max() <= bound for each in tokens) and tokens[1].abs().max() > 0.98 * bound
    assert model.blocks[0].drop_path2.peft.noah.output.change.activation == "quick_gelu"


def test_prompt_dropout_draws_a_mask_a_sample() -> None:
    model = adapt(stock(), "vpt", tokens=4, deep=True, dropout=0.5).train()
    seen = model.blocks[1].peft.vpt.tokens.before(torch.zeros(32, 17, 48))[:, 1:5]
    assert len({tuple((row == 0).flatten().tolist()) for row in seen}) == 32


def test_prompts_are_averaged_where_the_model_averages() -> None:
    with pytest.raises(PeftError, match="pool_prompts is for models that average their tokens"):
        adapt(stock(), "vpt", pool_prompts=True)
    model = adapt(MODELS["average_pooled"].model(), "vpt", tokens=4, pool_prompts=True).eval()
    assert model.forward_features(X).shape[1] == 16  # tests/peft_core/test_tokens.py tells the mean
