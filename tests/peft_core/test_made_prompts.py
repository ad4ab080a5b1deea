"""Prompts that are made, gated, added to or transformed, against the papers' equations written out block by block."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from peft.tuners.p_tuning import PromptEncoder
from torch import Tensor, nn

from peft_core import adapt, lifecycle, load_adapter, save_adapter
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.lifecycle import Progress
from peft_core.testing import loss, perturb

X = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DEPTH, DIM = 4, 16


def vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=DIM, num_heads=2, depth=DEPTH, num_classes=5)
    return timm.create_model("vit_tiny_patch16_224", **(sizes | changes)).double()


def walk(stock: nn.Module, block: Callable[[int, Tensor], Tensor]) -> Tensor:
    """A ViT's forward, each of whose blocks is run by `block(index, x)`."""
    x = stock.patch_embed(X)
    x = stock.norm_pre(stock.patch_drop(stock._pos_embed(x)))
    for index in range(DEPTH):
        x = block(index, x)
    return stock.forward_head(stock.norm(x))


def adapted(name: str, **hyper: Any) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The adapted model in eval mode, its stock twin with the same head, and its grafts by block and slot."""
    model = adapt(vit(), name, **hyper)
    perturb(model)
    stock = vit()
    stock.load_state_dict({key: value for key, value in model.state_dict().items() if "peft" not in key.split(".")})
    paths = {module: path for path, module in model.named_modules()}
    found = {f"{paths[module]}/{slot}": graft for module, slot, graft in grafts_named(model, name)}
    return model.eval(), stock.eval(), found


def joined(x: Tensor, prompts: Tensor) -> Tensor:
    return torch.cat((x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1:]), 1)


def split(y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return torch.cat((y[:, :1], y[:, 1 + count :]), 1), y[:, 1 : 1 + count]


@pytest.mark.parametrize("pool", ["cls", "mean", "max"])
def test_late_prompts_are_made_of_the_states_at_their_block(pool: str) -> None:
    model, stock, grafts = adapted("late_prompt", tokens=2, hidden=3, pool=pool)
    made = grafts["blocks.2/tokens"].tokens
    carried: Tensor | None = None

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal carried
        if index == 2:
            inner = F.linear(x, made.down.weight, made.down.bias)
            if pool == "cls":
                carried = F.linear(inner[:, 0].relu(), made.up.weight, made.up.bias).view(3, 2, DIM)
            else:  # 17 tokens into two pieces that share the middle one, as adaptive pooling cuts them
                pieces = (inner[:, :9], inner[:, 8:])
                pooled = torch.stack([p.mean(1) if pool == "mean" else p.amax(1) for p in pieces], 1)
                carried = F.linear(pooled.relu(), made.up.weight, made.up.bias)
        if carried is None:
            return stock.blocks[index](x)
        x, carried = split(stock.blocks[index](joined(x, carried)), 2)
        return x

    torch.testing.assert_close(model(X), walk(stock, block))


def test_nothing_runs_backward_below_a_late_prompt() -> None:
    model = adapt(vit(), "late_prompt", tokens=2, hidden=3, start=3)
    asked: list[bool] = []
    model.blocks[2].register_forward_hook(lambda module, args, output: asked.append(output.requires_grad))
    model(X)
    assert asked == [False]


def test_a_late_prompt_wants_a_block_and_a_class_token() -> None:
    with pytest.raises(PeftError, match="start 4 lies above the model's last block, 3"):
        adapt(vit(), "late_prompt", start=4)
    pooled = vit(class_token=False, global_pool="avg")
    with pytest.raises(PeftError, match="take pool mean or max"):
        adapt(pooled, "late_prompt", start=1)
    adapt(pooled, "late_prompt", start=1, pool="mean")


def test_the_most_probable_route_gives_the_prompt() -> None:
    model, stock, grafts = adapted("smop", tokens=2, routes=3)
    made = grafts["blocks.0/tokens"].tokens
    carried: Tensor | None = None

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal carried
        if index == 0:
            p = torch.softmax(x.mean(1) @ made.router.t(), -1)
            j = p.argmax(-1)
            carried = torch.stack([p[i, j[i]] * made.prompts[j[i]] for i in range(3)])
        x, carried = split(stock.blocks[index](joined(x, carried)), 2)
        return x

    torch.testing.assert_close(model(X), walk(stock, block))
    quiet = model(X)
    assert not torch.equal(model.train()(X), quiet)  # the router's noise


def test_what_is_propagated_gathers() -> None:
    model, stock, grafts = adapted("prefix_propagation", tokens=2, dropout=0.1)
    values = [grafts["blocks.0/tokens"].tokens, *(grafts[f"blocks.{i}/propagation"].values for i in range(1, DEPTH))]
    tokens = torch.zeros(3, 2, DIM, dtype=torch.float64)

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal tokens
        x, tokens = split(stock.blocks[index](joined(x, tokens + values[index])), 2)
        return x

    torch.testing.assert_close(model(X), walk(stock, block))


def test_gates_mix_and_temperatures_divide() -> None:
    model, stock, grafts = adapted("gated_prompt", tokens=2, gate=0.5)
    carried = grafts["blocks.0/tokens"].tokens.expand(3, -1, -1)

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal carried
        stock.blocks[index].attn.scale /= grafts[f"blocks.{index}.attn.qkv/q"].value.item()
        x, left = split(manual(stock.blocks[index], joined(x, carried)), 2)
        if index < DEPTH - 1:
            gate = torch.sigmoid(grafts[f"blocks.{index}/gate"].logit)
            left = gate * left + (1 - gate) * carried
        carried = left
        return x

    torch.testing.assert_close(model(X), walk(stock, block))


def manual(block: Any, x: Tensor) -> Tensor:
    """A block whose attention is written out, with the scale that it has now."""
    attn, y = block.attn, block.norm1(x)
    q, k, v = attn.qkv(y).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    heads = ((q @ k.transpose(-2, -1)) * attn.scale).softmax(-1) @ v
    x = x + attn.proj(heads.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def test_temperatures_stay_in_their_range() -> None:
    model = adapt(vit(), "gated_prompt", tokens=2)
    temperatures = [g.value for _, slot, g in grafts_named(model, "gated_prompt") if slot == "q"]
    with torch.no_grad():
        temperatures[0].fill_(-3.0)
        temperatures[1].fill_(30.0)
    lifecycle.after_step(model, Progress(1, 2))
    assert [t.item() for t in temperatures] == pytest.approx([0.01, 10.0, 1.0, 1.0])
    with pytest.raises(PeftError, match="queries that are normed"):
        adapt(vit(qk_norm=True), "gated_prompt", tokens=2)


def test_the_first_prompts_are_given_by_their_spectrum() -> None:
    model, stock, grafts = adapted("vpt", tokens=3, deep=True, project=5, fourier=0.7)
    projection = grafts["/shared_projection"].value

    def block(index: int, x: Tensor) -> Tensor:
        prompts = F.linear(grafts[f"blocks.{index}/tokens"].tokens.values, projection.weight, projection.bias)
        n, k = torch.arange(2.0).double(), torch.arange(float(DIM)).double()  # ⌊0.7 · 3⌋ = 2
        over_tokens = torch.exp(-2j * torch.pi * torch.outer(n, n) / 2)
        over_width = torch.exp(-2j * torch.pi * torch.outer(k, k) / DIM)
        spectrum = (over_tokens @ prompts[:2].to(torch.complex128) @ over_width).real
        return split(stock.blocks[index](joined(x, torch.cat((spectrum, prompts[2:])))), 3)[0]

    torch.testing.assert_close(model(X), walk(stock, block))


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tunings_encoder_is_pefts(encoder: str) -> None:
    model = adapt(vit(), "p_tuning", tokens=3, encoder=encoder, hidden=6)
    (ours,) = [g.tokens for _, _, g in grafts_named(model, "p_tuning") if isinstance(g.tokens, nn.Module)]
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=3, token_dim=DIM, num_transformer_submodules=1, num_attention_heads=2, num_layers=4,
        encoder_reparameterization_type=encoder.upper(), encoder_hidden_size=6,
    )  # fmt: skip
    theirs = PromptEncoder(config).double()
    theirs.load_state_dict(
        {k.replace("mlp.", "mlp_head.").replace("lstm.", "lstm_head.").replace("table", "embedding.weight"): v
         for k, v in ours.state_dict().items()}
    )  # fmt: skip
    expected = theirs(torch.arange(3))
    torch.testing.assert_close(ours(None), expected)
    loss(expected).backward()
    loss(ours(None)).backward()
    torch.testing.assert_close(ours.table.grad, theirs.embedding.weight.grad)


def test_the_encoder_goes_when_training_has_ended(tmp_path) -> None:
    model = adapt(vit(), "p_tuning", tokens=3, hidden=6).eval()
    perturb(model)
    before = model(X)
    lifecycle.finish(model)
    torch.testing.assert_close(model(X), before)
    save_adapter(model, tmp_path)
    again = load_adapter(vit().eval(), tmp_path)
    torch.testing.assert_close(again(X), before)
    assert sum(p.numel() for k, p in again.named_parameters() if "peft" in k.split(".")) == 3 * DIM


def test_sampled_prompts_are_patches_of_the_training_pictures() -> None:
    model = adapt(vit(), "prompt_tuning", tokens=7, init="sampled")
    lifecycle.prepare(model, (model(X).sum() for _ in range(3)))
    (made,) = [g.tokens for _, _, g in grafts_named(model, "prompt_tuning") if isinstance(g.tokens, nn.Module)]
    patches = (model.patch_embed(X) + model.pos_embed[:, 1:]).flatten(0, 1)
    distances = torch.cdist(made.values, patches).amin(1)
    assert distances.max() < 1e-6 and len(made.values.unique(dim=0)) == 7


def test_gates_of_uni_pelt_are_means_over_tokens_of_each_part() -> None:
    model, stock, grafts = adapted("uni_pelt", rank=2, tokens=2, bottleneck=8, hidden=5)

    def gate(layer: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(x, layer.weight, layer.bias)).mean(1, keepdim=True)

    def block(index: int, x: Tensor) -> Tensor:
        part, here = stock.blocks[index], f"blocks.{index}"
        prefix = grafts[f"{here}.attn/keys_values"].make
        q_lora, v_lora = grafts[f"{here}.attn.qkv/q"], grafts[f"{here}.attn.qkv/v"]
        adapter = next(g for key, g in grafts.items() if key.startswith(here) and key.endswith("output")).change
        y = part.norm1(x)
        q, k, v = part.attn.qkv(y).chunk(3, -1)
        q = q + gate(q_lora.gate, y) * (y @ q_lora.A.t() @ q_lora.B.t())
        v = v + gate(v_lora.gate, y) * (y @ v_lora.A.t() @ v_lora.B.t())
        more = [values * gate(prefix.gate, y) for values in prefix.make(None)]
        k, v = torch.cat((more[0], k), 1), torch.cat((more[1], v), 1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v))
        heads = ((q @ k.transpose(-2, -1)) * stock.blocks[index].attn.scale).softmax(-1) @ v
        x = x + stock.blocks[index].attn.proj(heads.transpose(1, 2).flatten(2))
        z = stock.blocks[index].mlp(stock.blocks[index].norm2(x))
        down, up = adapter.bottleneck.down, adapter.bottleneck.up
        change = F.linear(F.linear(z, down.weight, down.bias).relu(), up.weight, up.bias)
        return x + z + gate(adapter.gate, z) * change

    torch.testing.assert_close(model(X), walk(stock, block))
    before = model(X)
    lifecycle.finish(model)
    torch.testing.assert_close(model(X), before)
