"""Tiny models with open_clip's real vocabulary, random weights that do something, and an independent full-length pass."""

import copy
import functools
import math
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from clip_peft.text.prompts import Prompts, make_prompts
from clip_peft.text.tower import TextTower

LENGTH = 24
NAMES = (
    "cat",
    "great white shark",
    "red ring",
    "Chihuahua dog",
    "king-of-the-castle (toy)",
    "tench",
    "striped cube on a table",
)
VISION = dict(image_size=32, layers=3, width=64, head_width=16, patch_size=8)
TEXT = dict(context_length=LENGTH, vocab_size=49408, width=32, heads=2, layers=3)


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=LENGTH)


def randomised(model: nn.Module) -> nn.Module:
    """Random weights that do something, and the logit scale that OpenAI's models have."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "logit" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "token_embedding" in name or "positional" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        model.logit_scale.fill_(math.log(100))
    return model.eval()


def made_once(build: Any) -> Any:
    """The same model each time, as a copy of its own."""
    once = functools.cache(build)
    return functools.wraps(build)(lambda **text: copy.deepcopy(once(**text)))


@made_once
def clip(**text: Any) -> Any:
    torch.manual_seed(0)
    return randomised(open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT | text, quick_gelu=True))


@made_once
def custom_clip(**text: Any) -> Any:
    torch.manual_seed(0)
    return randomised(open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT | text))


@made_once
def siglip(**text: Any) -> Any:
    """A timm image tower beside a bidirectional text tower that pools its last token."""
    torch.manual_seed(0)
    vision = dict(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=32)
    text = TEXT | dict(no_causal_mask=True, pool_type="last", proj_bias=True) | text
    return randomised(open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, init_logit_bias=-10.0))


@made_once
def coca() -> Any:
    torch.manual_seed(0)
    vision = VISION | dict(attentional_pool=True, attn_pooler_heads=2, output_tokens=True)
    text = TEXT | dict(embed_cls=True, output_tokens=True)
    multimodal = dict(context_length=LENGTH, vocab_size=49408, width=32, heads=2, layers=1)
    return randomised(open_clip.CoCa(embed_dim=16, multimodal_cfg=multimodal, text_cfg=text, vision_cfg=vision))


def residual_clip() -> Any:
    """A ResNet of four blocks as image tower, at open_clip's own start."""
    vision = dict(image_size=32, layers=(1, 1, 1, 1), width=8, patch_size=None)  # known by its layers alone
    text = dict(context_length=24, vocab_size=49408, width=32, heads=2, layers=2)
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def plain(model: Any, prompts: Any, context: Tensor | None = None, deep: tuple[Tensor, ...] = ()) -> Tensor:
    """All tokens of all classes through the stock blocks of a causal tower: context M D or C M D, one image."""
    tower = getattr(model, "text", model)
    x = tower.token_embedding(prompts.ids)
    rows, columns = (prompts.slots >= 0).nonzero(as_tuple=True)

    def put(x: Tensor, vectors: Tensor) -> Tensor:
        vectors = vectors if vectors.dim() == 3 else vectors.expand(len(prompts), -1, -1)
        x = x.clone()
        x[rows, columns] = vectors[rows, prompts.slots[rows, columns]]
        return x

    x = (put(x, context) if context is not None else x) + tower.positional_embedding
    for i, block in enumerate(tower.transformer.resblocks):
        x = put(x, deep[i - 1]) if 0 < i <= len(deep) else x
        x = block(x, attn_mask=tower.attn_mask)
    x = tower.ln_final(x)[torch.arange(len(prompts)), prompts.pooled]
    projection = tower.text_projection
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def close(one: Tensor, other: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    assert one.shape == other.shape
    one, other = one.detach(), other.detach()
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def pictures(count: int = 4, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def prompts_of(
    model: Any, context: int = 0, position: str = "end", template: str = "{}.", names: Any = NAMES
) -> Prompts:
    return make_prompts(TextTower(model), tokenizer(), names, template, context, position)


def random(*shape: int, seed: int = 1) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5).requires_grad_()


def gradients(features: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((features * weight).sum() + features.square().sum(), inputs))


def agree(one: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    """Features and the gradients of the inputs."""
    close(one, other)
    for a, b in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        assert b.abs().sum() > 0
        close(a, b)
