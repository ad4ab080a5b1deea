"""Exact counts, and what each control computes, by hand on small tensors. The contract itself is tests/test_contract.py's."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_peft.control import controls_of, set_condition
from diffusion_peft.methods.controlnet import cross_normalise
from diffusion_peft.methods.gligen import Fuser
from diffusion_peft.methods.ip_adapter import OverImage
from peft_core import PeftError, adapt, remove, set_scale
from peft_core.grafts.calls import state
from tests.diffusion_peft import control
from tests.diffusion_peft.pipelines import stable_diffusion
from tests.diffusion_peft.test_counts import inserted, unet
from tests.tiny import MODELS, condition

COUNTS: list[tuple[str, dict[str, Any], int, int]] = [
    ("controlnet", {}, 361_279_120, 1_251_014_160),
    ("controlnet", {"join": "norm"}, 361_279_120, 1_251_014_160),
    ("controlnext", {"targets": ()}, 3_526_400, 3_526_400),
    ("t2i_adapter", {}, 77_369_280, 79_028_160),
    ("ip_adapter", {"width": 1024}, 22_319_616, 349_188_096),
    ("ip_adapter", {"width": 1280}, 23_106_048, 351_285_248),
    ("ip_adapter", {"plus": True, "width": 1280}, 49_087_488, 423_748_864),
]


@pytest.mark.parametrize("method, hyper, sd15, sdxl", COUNTS, ids=str)
def test_counts(method: str, hyper: dict[str, Any], sd15: int, sdxl: int) -> None:
    assert inserted(unet("sd15"), method, hyper) == sd15
    assert inserted(unet("sdxl"), method, hyper) == sdxl


def test_counts_of_gligen_and_of_control_lora() -> None:
    assert inserted(unet("sd15"), "gligen", {}) == 209_102_240
    new = 12_572_480  # hint encoder and zero convolutions, as in ControlNet
    encoder = inserted(unet("sd15"), "lora", {"rank": 4, "targets": (*LOW_RANK,), "blocks": (0, 1, 2, 3, 4)})
    time = 4 * (320 + 1280) + 4 * (1280 + 1280)
    counted = inserted(unet("sd15"), "control_lora", {"rank": 4})
    assert counted - encoder - time == 361_279_120 - encoder_of_sd15() and abs(counted - encoder - time - new) < 10_000


LOW_RANK = ("attn", "cross_attn", "mlp", "proj_io", "conv", "time")


def encoder_of_sd15() -> int:
    parts = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")
    return sum(p.numel() for key, p in unet("sd15").named_parameters() if key.startswith(parts))


@torch.no_grad()
def test_decoupled_attention() -> None:
    """Z = softmax(Q K_tᵀ / √d) V_t + λ softmax(Q K_iᵀ / √d) V_i, then the output projection."""
    torch.manual_seed(0)
    model = stable_diffusion("sd15").unet
    plain = copy.deepcopy(model)
    adapt(model, "ip_adapter", width=6)
    (_, root), *_ = controls_of(model)
    attention = model.mid_block.attentions[0].transformer_blocks[0].attn2
    layer = attention.peft["ip_adapter"]["keys_values"]
    assert isinstance(layer, OverImage) and torch.equal(layer.make.to_k.weight, attention.to_k.weight)
    x, text, image = torch.randn(2, 9, 32), torch.randn(2, 5, 24), torch.randn(2, 4, 24)
    tagged = root.hand_down({"encoder_hidden_states": text}, image)["encoder_hidden_states"]
    set_scale(model, 0.7)

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    q = attention.to_q(x)
    mixed = one(q, attention.to_k(text), attention.to_v(text)) + 0.7 * one(q, *layer.make(image))
    stock = plain.mid_block.attentions[0].transformer_blocks[0].attn2
    torch.testing.assert_close(attention(x, tagged), stock.to_out[0](mixed), rtol=0, atol=1e-5)
    state().clear()
    torch.testing.assert_close(attention(x, text), stock(x, text), rtol=0, atol=0)


@torch.no_grad()
def test_gated_attention() -> None:
    """x ← x + tanh(α₁) SelfAttn(LN [x; W h])_x, then x ← x + tanh(α₂) FF(LN x), before cross attention."""
    torch.manual_seed(0)
    model = stable_diffusion("sd15").unet
    adapt(model, "gligen")
    block = model.mid_block.attentions[0].transformer_blocks[0]
    fuser = block.norm2.peft["gligen"]["fuser"]
    assert isinstance(fuser, Fuser)
    net, x, h = fuser.net, torch.randn(2, 9, 32), torch.randn(2, 3, 24)
    net.alpha_attn.fill_(0.6)
    net.alpha_dense.fill_(-0.4)
    both = F.layer_norm(torch.cat([x, net.linear(h)], 1), (32,), net.norm1.weight, net.norm1.bias)
    y = x + torch.tanh(torch.tensor(0.6)) * net.attn(both)[:, :9]
    y = y + torch.tanh(torch.tensor(-0.4)) * net.ff(F.layer_norm(y, (32,), net.norm2.weight, net.norm2.bias))
    text = torch.randn(2, 5, 24)
    base_of = lambda stream: block.attn2(block.norm2(stream), text) + stream  # noqa: E731
    without = base_of(y)
    state()["gligen", "here"] = h
    torch.testing.assert_close(fuser.before(x), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(base_of(x), without, rtol=0, atol=1e-5)
    state().clear()


def test_cross_normalisation() -> None:
    c, x = torch.randn(2, 3, 4, 4) * 5 + 2, torch.randn(2, 3, 4, 4)
    y = cross_normalise(c, x)
    for row in range(2):
        expected = (c[row] - c[row].mean()) * x[row].std() / c[row].std() + x[row].mean()
        torch.testing.assert_close(y[row], expected, rtol=1e-4, atol=1e-5)


def tiny_unet() -> Any:
    return MODELS["unet"]


@torch.no_grad()
def test_composition_is_additive() -> None:
    """Two ControlNets with weights: their residuals are summed, and each goes with its own weight."""
    tiny = tiny_unet()
    model = tiny.model().eval()
    for name in ("one", "two"):
        adapt(model, "controlnet", name=name, shrink=1)
        for parameter in model.peft[name].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    first, second = condition()["picture"], condition()["picture"].flip(0)
    set_condition(model, {"picture": first}, "one")
    set_condition(model, {"picture": second}, "two")
    set_scale(model, 0.6, "two")
    seen: dict[str, Any] = {}
    stock = tiny.model().eval()
    hook = model.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    y = tiny.out(model(**tiny.batch()))
    hook.remove()
    parts = []
    for name, picture, scale in (("one", first, 1.0), ("two", second, 0.6)):
        net, batch = model.peft[name]["branch"].net, tiny.batch()
        down, mid = net(batch["sample"], batch["timestep"], batch["encoder_hidden_states"], picture, return_dict=False)
        parts.append([scale * each for each in (*down, mid)])
    summed = [a + b for a, b in zip(*parts, strict=True)]
    expected = stock(
        **tiny.batch(), down_block_additional_residuals=summed[:-1], mid_block_additional_residual=summed[-1]
    )
    torch.testing.assert_close(y, expected.sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", control.METHODS)
def test_scale_0_and_no_condition_are_the_base_to_the_bit(method: str) -> None:
    tiny = tiny_unet()
    model, stock = tiny.model().eval(), tiny.model().eval()
    y = tiny(stock)
    adapt(model, method, **control.METHODS[method])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    assert not torch.equal(tiny(model), y)
    set_scale(model, 0.0)
    assert torch.equal(tiny(model), y)
    set_scale(model, 1.0)
    if method != "controlnext":  # its targets stay
        set_condition(model, None)
        torch.manual_seed(7)
        assert torch.equal(model(**tiny.batch()).sample, y)


def test_no_gradient_below_the_join() -> None:
    """ControlNet: the UNet's own encoder keeps nothing for backward."""
    tiny = tiny_unet()
    model = adapt(tiny.model(), "controlnet", shrink=1).train()
    seen: list[bool] = []
    model.down_blocks[0].register_forward_hook(lambda m, args, out: seen.append(out[0].requires_grad))
    model.up_blocks[0].register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    tiny(model)
    assert seen == [False, True]


@torch.no_grad()
def test_guidance_scheduled_sampling_and_wrong_conditions() -> None:
    tiny = tiny_unet()
    model = adapt(tiny.model().eval(), "gligen")
    for _, root in controls_of(model):
        both = root.guided({key: condition()[key] for key in root.wants})
        assert both["present"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]]
        for fuser in root.partners:
            fuser.net.alpha_attn.fill_(1.0)
    base = tiny(adapt(tiny.model().eval(), "gligen"))
    given = {key: value for key, value in condition().items() if key != "picture"}
    set_condition(model, given, calls=1)
    one, two = (model(**tiny.batch()).sample for _ in range(2))
    assert not torch.equal(one, base) and torch.equal(two, base)
    with pytest.raises(PeftError, match="the condition lacks boxes, phrases, present"):
        set_condition(model, {"picture": condition()["picture"]})
    set_condition(model, {key: value[:1].repeat(3, *[1] * (value.dim() - 1)) for key, value in given.items()})
    with pytest.raises(PeftError, match="has 3 pictures, which do not fit a batch of 2"):
        model(**tiny.batch())
    with pytest.raises(PeftError, match="has no control"):
        set_condition(tiny.model(), given)
    other = adapt(tiny.model(), "controlnet", shrink=2)
    set_condition(other, {"picture": condition()["picture"]})
    with pytest.raises(PeftError, match="is 3 × 8 × 8 .* latents of 8 × 8 need 3 × 16 × 16"):
        other(**tiny.batch())
    remove(model)
    for wrong in ({"shrink": 3}, {"shrink": 16}):
        with pytest.raises(PeftError, match="1, 2, 4 or 8"):
            adapt(model, "controlnet", **wrong)
    with pytest.raises(PeftError, match="multiple of 8"):
        adapt(model, "controlnext", width=12)
