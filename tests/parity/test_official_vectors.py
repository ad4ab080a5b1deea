"""Adapters that merge, rescaled and quantised weights against tensors that the authors' own code gave, in float64: forward,
gradients and one training step; rotations against Hugging Face PEFT. What of the repositories was mapped onto timm's names:

luogen1996/RepAdapter 360992f: `RepAdapter` on timm's ViT, drop path and dropout on (its dropout drawn in the order B N h);
DavidYanAnDe/ARC 8227d57: `ARCVisionTransformer`, q, k and v as rows of timm's qkv, dropout on;
zstarN70/RLRR 287c772: `RLRRVisionTransformer`, q, k and v likewise;
Arnav0400/ViT-Slim 0fed674: `SuperScalableLinear` with a form chosen for each layer;
JieShibo/PETL-ViT 026e4f1: `QLinear` in AdaptFormer, LoRA and the head, its levels in float64; drop path and dropout on.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import RoadConfig
from safetensors import safe_open
from torch import Tensor, nn

from peft_core import adapt, merge
from peft_core.grafts.packing import pack
from peft_core.methods.scaling.road import Turn
from peft_core.stock import adapter_state
from tests.parity.golden import values
from tests.parity.test_official import LABELS, PICTURES, check, vit
from tests.parity.test_weight_changes import compare_with_peft, layer

GOLDEN = Path(__file__).with_name("golden")


def fill(model: nn.Module, name_there: Callable[[str], str], part: Callable[[str, nn.Parameter], Tensor] | None = None
         ) -> dict[str, str]:  # fmt: skip
    """The golden files' weights; key -> name there."""
    names = {
        key: name_there(key) if ".peft." in key or key.startswith("peft.") else key
        for key, _ in model.named_parameters()
    }
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            inserted = names[key] != key and part is not None
            given = part(names[key], parameter) if inserted else values(names[key], parameter.shape)  # type: ignore[misc]
            parameter.copy_(given.view_as(parameter))
    return names


def before(key: str) -> str:
    """A parameter of what stands before attention or MLP."""
    block, kind = re.findall(r"blocks\.\d+|attn|mlp", key)[:2]
    return f"{block}.adapter_{kind}.{key.rpartition('.')[2]}"


def a_step(case: str, model: nn.Module, names: dict[str, str]) -> None:
    check(case, model, names, lambda: model(PICTURES), LABELS, lambda: None)
    y = model(PICTURES)
    torch.testing.assert_close(merge(model)(PICTURES), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case, positions", [("rep_adapter", ("attn", "mlp")), ("rep_adapter_attn", ("attn",))])
def test_a_step_of_rep_adapter_is_the_authors(case: str, positions: tuple[str, ...]) -> None:
    model = adapt(vit(drop_path_rate=0.5), "rep_adapter", bottleneck=4, scale=3.0, positions=positions)
    a_step(case, model, fill(model, before))


def test_a_step_of_arc_is_the_authors() -> None:
    def name_there(key: str) -> str:
        return re.sub(r".*shared_(\w+)_16_6\.value", r"\1_U", key) if "shared" in key else before(key)

    model = adapt(vit(), "arc", bottleneck=6)
    a_step("arc", model, fill(model, name_there))


def test_a_step_of_rlrr_is_the_authors() -> None:
    def name_there(key: str) -> str:
        path, last = re.sub(r"qkv\.peft\.rlrr\.([qkv])\.", r"\1.", key), key.rpartition(".")[2]
        return re.sub(r"\.peft\.rlrr\..*", f".{last}", path)

    model = adapt(vit(), "rlrr")
    a_step("rlrr", model, fill(model, name_there))


def test_a_step_of_glora_is_the_authors() -> None:
    """A vector is the first column there of what a low-rank product would have, a constant its first number."""
    words = ("lllvv", "vcvcv", "cvnvc", "nlvnc", "lnlcn", "vvnnv", "lcvvv", "cllvc")
    model = adapt(vit(drop_path_rate=0.5), "glora", rank=3, layers=words)

    def name_there(key: str) -> str:
        name = re.sub(r"peft\.glora\.\w+\.", "", key)
        name = re.sub(r"\.([DE])\.value$", r".\1", name)
        return re.sub(r"\.up$", "u", re.sub(r"\.(down|value)$", "d", name))

    def whole(name: str, parameter: nn.Parameter) -> tuple[int, ...]:
        path, _, form = name.rpartition(".")
        out, inner = model.get_submodule(path).weight.shape  # type: ignore[union-attr]
        if form in ("D", "E"):
            return (out,)
        return (3, 1 if form[0] == "C" else inner) if form[1] == "u" else (inner if form[0] == "C" else out, 3)

    def part(name: str, parameter: nn.Parameter) -> Tensor:
        given = values(name, whole(name, parameter))
        return given if given.shape == parameter.shape else given.view(len(given), -1)[: len(parameter), :1]

    names = fill(model, name_there, part)
    a_step("glora", model, names)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_road_as_in_peft(variant: str) -> None:
    stock = layer("linear")
    config = RoadConfig(variant=variant, group_size=4, target_modules=["layer"])
    names = {"theta": "road_theta.default", "alpha": "road_alpha.default"}
    compare_with_peft("linear", config, Turn(stock.weight, None, variant, 4), stock, names)


@pytest.mark.parametrize(
    "case, method, settings",
    [
        ("bi_adaptformer", "bi_adaptformer", dict(bottleneck=3, scale=2.0)),
        ("bi_adaptformer_3_bits", "bi_adaptformer", dict(bottleneck=3, scale=2.0, bits=3)),
        ("bi_lora", "bi_lora", dict(rank=3, alpha=6.0)),
        ("bi_lora_head", "bi_lora", dict(rank=3, alpha=6.0, head_bits=1)),
    ],
)
def test_a_step_of_few_bits_is_the_authors(case: str, method: str, settings: dict[str, Any]) -> None:
    """Their head of one bit has no bias: here it is held at zero."""
    model = adapt(vit(drop_path_rate=0.5), method, **settings)

    def name_there(key: str) -> str:
        block = re.findall(r"blocks\.\d+", key)[0]
        inserted = re.findall(r"bi_lora\.[qv]", key)
        return (
            f"{block}.{inserted[0].replace('bi_', 'attn.') if inserted else 'adapter'}.{'.'.join(key.split('.')[-2:])}"
        )

    names = fill(model, name_there)
    if "head_bits" in settings:
        model.head.bias.requires_grad_(False).zero_()
    with safe_open(GOLDEN / f"{case}.safetensors", framework="pt") as file:
        theirs = bytes.fromhex((file.metadata() or {}).get("bits", ""))
    ours = pack(model, adapter_state(model))[f"peft.{method}.packed"].numpy().tobytes()
    assert without_statistics(ours, case == "bi_lora_head") == (theirs or without_statistics(ours, False))
    check(case, model, names, lambda: model(PICTURES), LABELS, lambda: None)


def without_statistics(packed: bytes, head: bool) -> bytes:
    """The bits of the matrices, 48 of each and at last 80 of the head: behind each come mean and deviation in float64."""
    end = len(packed) - 26 * head
    return b"".join(packed[start : start + 6] for start in range(0, end, 22)) + packed[end : end + 10]
