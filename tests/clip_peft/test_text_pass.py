"""The packed text pass gives what all tokens of all classes give: features and gradients."""

import copy

import pytest
import torch
from torch import Tensor

from clip_peft.text.run import TextPass
from clip_peft.text.tower import TextTower
from peft_core import adapt
from tests.clip_peft.models import (
    NAMES,
    agree,
    clip,
    close,
    custom_clip,
    gradients,
    plain,
    prompts_of,
    random,
    tokenizer,
)

LAYOUTS = {
    "clip": clip,
    "custom": custom_clip,
    "linear_projection": lambda: clip(proj_bias=True),
    "eos": lambda: custom_clip(pool_type="eos", eos_id=49407),
    "layer_scale": lambda: clip(ls_init_value=0.3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_templates_on_every_causal_layout(layout: str):
    model = LAYOUTS[layout]().requires_grad_(False)
    prompts = prompts_of(model, template="a photo of a {}.")
    run = TextPass(model, prompts)
    close(run(), model.encode_text(tokenizer()([f"a photo of a {name}." for name in NAMES])))
    assert run._packing(slice(0, len(NAMES)), True).shared == 5


def test_pooling_of_the_first_and_of_the_last_token():
    for pool in ("first", "last"):
        model = custom_clip(pool_type=pool).requires_grad_(False)
        prompts = prompts_of(model)
        close(TextPass(model, prompts)(), model.encode_text(prompts.ids))


@pytest.mark.parametrize("memory", [None, 1.2e5], ids=["at_once", "chunks"])
@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "class_specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_context_at_every_position(position: str, class_specific: bool, memory: float | None):
    model = clip().requires_grad_(False)
    prompts = prompts_of(model, 5, position)
    context = random(*((len(NAMES),) if class_specific else ()), 5, 32)
    run = TextPass(model, prompts, memory)
    chunks = list(run._chunks(1, False, [run._shaped(context)]))
    assert len(chunks) == 1 if memory is None else len(chunks) > 2
    agree(run(context), plain(model, prompts, context), [context])
    agree(run(context, full_length=True), plain(model, prompts, context), [context])


@pytest.mark.parametrize("memory", [None, 1.2e5], ids=["at_once", "chunks"])
@pytest.mark.parametrize("position", ["end", "front"])
def test_deep_prompts(position: str, memory: float | None):
    model = clip().requires_grad_(False)
    prompts = prompts_of(model, 2, position)
    vectors = [random(2, 32, seed=i) for i in range(3)]
    run = TextPass(model, prompts, memory)
    agree(run(vectors[0], vectors[1:]), plain(model, prompts, vectors[0], tuple(vectors[1:])), vectors)
    agree(
        run(vectors[0], vectors[1:], full_length=True), plain(model, prompts, vectors[0], tuple(vectors[1:])), vectors
    )


@pytest.mark.parametrize("memory", [None, 4e5, 1.2e5], ids=["at_once", "images", "images_and_classes"])
def test_per_image_context_is_image_by_image(memory: float | None):
    model = clip().requires_grad_(False)
    prompts = prompts_of(model, 4)
    context = random(3, 1, 4, 32)
    run = TextPass(model, prompts, memory)
    for full_length in (False, True):
        one_by_one = torch.stack([plain(model, prompts, c[0]) for c in context])
        agree(run(context, full_length=full_length), one_by_one, [context])
    both = random(3, len(NAMES), 4, 32)
    agree(run(both), torch.stack([plain(model, prompts, c) for c in both]), [both])


@pytest.mark.parametrize("memory", [None, 1.2e5], ids=["at_once", "chunks"])
@pytest.mark.parametrize(
    "method, hyper",
    [
        ("lora", dict(rank=2, targets=("q", "v", "proj", "fc1", "fc2"), tower="text")),
        ("lora", dict(rank=2, targets=("qkv",), tower="text")),
        ("bitfit", dict(tower="text")),
        ("layer_norm", dict(tower="text")),
        ("adaptformer", dict(bottleneck=4, dropout=0.0, tower="text")),
        ("adapter", dict(bottleneck=4, position="houlsby", tower="text")),
        ("adapter_plus", dict(bottleneck=4, drop_path=0.0, tower="text")),
        ("ssf", dict(tower="text")),
        ("full", dict(tower="text")),
    ],
    ids=lambda v: v if isinstance(v, str) else "_".join(v.get("targets", ())),
)
def test_adapted_towers(method: str, hyper: dict, memory: float | None):
    model = adapt(clip(), method, **hyper).train()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    prompts = prompts_of(model, 3)
    context = random(3, 32)
    own = [p for n, p in model.named_parameters() if p.requires_grad and "visual" not in n and "logit_scale" not in n]
    reached = [p for p in own if gradient_of(model, prompts, context, p) is not None]
    assert len(reached) > 2
    assert TextTower(model).full_length_because() is None and TextTower(model).trainable()
    agree(TextPass(model, prompts, memory)(context), plain(model, prompts, context), [context])
    one, other = (
        gradients(f, reached) for f in (TextPass(model, prompts, memory)(context), plain(model, prompts, context))
    )
    scale = max(float(g.abs().max()) for g in other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * scale)


def test_blocks_that_do_more_than_stock_ones_get_their_own_forward():
    model = adapt(clip(), "adapter_plus", bottleneck=4, tower="text")
    assert TextTower(model.eval()).full_length_because() is None
    why = TextTower(model.train()).full_length_because()  # drop path draws once a class
    assert why == "its text block ResidualAttentionBlock does more than a stock one"
    for special in (dict(qk_norm=True), dict(scale_heads=True), dict(scale_attn=True)):
        model = custom_clip(**special)
        prompts = prompts_of(model)
        assert TextTower(model).full_length_because() is not None
        close(TextPass(model, prompts)(), model.encode_text(prompts.ids))
    model = clip()
    model.transformer.resblocks[1].attn.register_forward_hook(lambda _, __, y: (y[0] * 2, y[1]))
    prompts = prompts_of(model)
    close(TextPass(model, prompts)(), model.encode_text(prompts.ids))


class Attention(torch.nn.Module):
    """The attention that open_clip 4 puts into its blocks, as far as its parameters and its call go."""

    def __init__(self, stock: torch.nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.out_proj = stock.num_heads, stock.out_proj
        self.in_proj_weight, self.in_proj_bias = stock.in_proj_weight, stock.in_proj_bias


def test_own_attention_of_newer_blocks():
    model = clip().requires_grad_(False)
    newer = copy.deepcopy(model)
    for block in newer.transformer.resblocks:
        block.attn = Attention(block.attn)
    prompts, context = prompts_of(model, 3), random(3, 32)
    assert TextTower(newer).full_length_because() is None
    agree(TextPass(newer, prompts)(context), plain(model, prompts, context), [context])


def gradient_of(model, prompts, context, parameter):
    return torch.autograd.grad(plain(model, prompts, context).sum(), parameter, allow_unused=True)[0]


@pytest.mark.parametrize("count", [1000, 5000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_many_classes_train_in_bounded_memory(count: int):
    model = clip(layers=1, width=16, heads=1).requires_grad_(False)
    names = [f"{a} {b}" for a in range(1000) for b in range(count // 1000)]
    prompts = prompts_of(model, 4, names=names)
    context = random(4, 16)
    run = TextPass(model, prompts, memory=4e6)
    largest = 0

    def watch(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(watch, lambda t: t):
        features = run(context)
    assert features.shape == (count, 16) and len(list(run._chunks(1, False, [run._shaped(context)]))) >= count // 1000
    (chunked,) = torch.autograd.grad(features.square().sum(), context)
    (whole,) = torch.autograd.grad(TextPass(model, prompts, memory=1e12)(context).square().sum(), context)
    close(chunked, whole)
    assert largest <= 4e6


def test_chunks_keep_only_features_between_forward_and_backward():
    model = clip().requires_grad_(False)
    prompts, context = prompts_of(model, 4), random(4, 32)

    def kept(memory: float | None) -> int:
        sizes = {}

        def pack_hook(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
            TextPass(model, prompts, memory)(context)
        return sum(sizes.values())

    assert kept(1.2e5) < 0.1 * kept(None)


def test_bfloat16_autocast_and_pure_bfloat16():
    model = clip().requires_grad_(False)
    prompts, context = prompts_of(model, 4), random(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = TextPass(model, prompts)(context)
    features.float().square().sum().backward()
    assert context.grad.dtype == torch.float32 and torch.isfinite(context.grad).all()
    reference = TextPass(model, prompts)(context)
    assert torch.cosine_similarity(features.float(), reference, dim=-1).min() > 0.999
    assert TextPass(model.bfloat16(), prompts)(context).dtype == torch.bfloat16


def dropout_spread(run: TextPass, draws: int, **how) -> torch.Tensor:
    """The mean squared distance of the features of two classes with one name, over draws of the dropout."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([run(**how) for _ in range(draws)])
    return (found[:, 0] - found[:, 1]).square().mean()


def test_each_class_draws_its_own_dropout():
    model = adapt(clip(), "lora", rank=2, dropout=0.5, tower="text").train()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".peft." in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    run = TextPass(model, prompts_of(model, template="a photo of a very nice {}.", names=["cat", "cat"]))
    full = dropout_spread(run, 300, full_length=True)
    assert abs(dropout_spread(run, 300) / full - 1) < 0.2
    run.tower.draws_tokens = lambda: False  # one draw for the words before the names, as if they were one class's
    assert dropout_spread(run, 300) / full < 0.75
    assert run.tower.draws()
    model.eval()
    del run.tower.draws_tokens
    assert not run.tower.draws() and not run.tower.draws_tokens()
    close(run(), run(full_length=True))


@pytest.mark.parametrize(
    "method, hyper, packs",
    [("adaptformer", dict(bottleneck=4, dropout=0.3), True), ("lora", dict(dropout=0.3), True), ("lora", {}, True),
     ("adapter_plus", dict(bottleneck=4), False)],
)  # fmt: skip
def test_dropout_of_grafts_keeps_the_packed_pass_without_sharing(method: str, hyper: dict, packs: bool):
    model = adapt(clip(), method, tower="text", **hyper).train()
    tower = TextTower(model)
    assert (tower.full_length_because() is None) == packs
    assert tower.draws_tokens() == bool(hyper.get("dropout"))
    for module in model.transformer.modules():
        module.drop_prob = 0.1  # drop path: one chance a sequence
    assert "does more than a stock one" in str(tower.full_length_because())
