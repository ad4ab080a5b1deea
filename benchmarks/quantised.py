"""Quantised backbones: bytes beside float16's, and a step of LoRA beside Hugging Face PEFT's on the same bitsandbytes layers.

python -m benchmarks.quantised                    # ViT-L/16 and an SD-1.5-shaped UNet, then steps of one linear
python -m benchmarks.quantised --only vit step    # rows whose name holds one of these words
"""

import logging
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
from torch import nn

from benchmarks.diffusion_models import small_unet
from benchmarks.measuring import interleaved, machine, options, ratios, wanted, write_ratios
from peft_core import quantise
from peft_core.grafts.classes import swap_class
from peft_core.kernels.quantised import packed_of
from peft_core.parts.lowrank import LowRank

KINDS = ("nf4", "int4", "int8")
SIZES = {"768 to 2304": (768, 2304), "768 to 768": (768, 768), "3072 to 768": (3072, 768)}
RANK, TOKENS = 8, 8 * 197


def main() -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    parser = options(__doc__)
    parser.add_argument("--width", type=int, default=320, help="the UNet's first width; 320 is SD 1.5's")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    models: dict[str, Callable[[], nn.Module]] = {
        "vit_large_patch16_224": lambda: timm.create_model("vit_large_patch16_224", num_classes=0),
        f"SD-1.5-shaped UNet of width {args.width}": lambda: small_unet(args.width),
    }
    print(f"{machine(args.device)}\n\n| backbone | linears to float16 | whole to float16 |\n|---|---|---|")
    for name in wanted(args.only, models):
        for kind in KINDS:
            linears, whole = sizes(quantise(models[name](), kind))
            print(f"| {name}, {kind} | {linears:.3f} | {whole:.3f} |")
            write_ratios(args.ratios, "quantised bytes", f"{name}, {kind}", linears=linears, whole=whole)
    print("\n| forward and backward of one linear | ours to PEFT's |\n|---|---|")
    for name in wanted(args.only, [f"step, {bits}, {size}" for bits in ("4 bits", "8 bits") for size in SIZES]):
        _, bits, size = name.split(", ")
        found = ratios(interleaved(pair(bits, *SIZES[size], args.device), args.rounds, args.device, True), "theirs")[
            "ours"
        ]
        print(f"| {name}, {TOKENS} tokens, rank {RANK} | {found:.2f} |")
        write_ratios(args.ratios, "quantised step", name, time=found)


def sizes(model: nn.Module) -> tuple[float, float]:
    """Bytes to float16's: of the linears that are packed, and of the whole with the rest in float16."""
    packed, plain, rest = 0, 0, 0
    for module in model.modules():
        known, own = packed_of(module), (*module._parameters.values(), *module._buffers.values())
        for tensor in own:
            if tensor is not None and (known is None or tensor is module._parameters.get("bias")):
                rest += 2 * tensor.numel()
        if known is not None:
            bias = module._parameters.get("bias")
            packed += sum(t.numel() * t.element_size() for t in own if t is not None and t is not bias)
            plain += 2 * known.shape[0] * known.shape[1]
    return packed / plain, (packed + rest) / (plain + rest)


def pair(bits: str, width: int, out: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """A step of LoRA on one and the same layer of bitsandbytes, ours and PEFT's."""
    import bitsandbytes
    from peft import LoraConfig, inject_adapter_in_model

    linear, quantised = nn.Linear(width, out), cast("Any", bitsandbytes.nn)

    def layer() -> Any:
        if bits == "4 bits":
            new = quantised.Linear4bit(width, out, quant_type="nf4")
        else:
            new = quantised.Linear8bitLt(width, out, has_fp16_weights=False)
        new.weight.data, new.bias = (
            linear.weight.data.clone(),
            nn.Parameter(linear.bias.data.clone(), requires_grad=False),
        )
        return new.to(device)

    theirs: Any = nn.ModuleDict({"layer": layer()})
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"]), theirs)
    ours, change = layer(), LowRank(linear.weight.to(device), None, RANK, 1.0)
    swap_class(ours)
    ours.add_module("peft", nn.ModuleDict({"lora": nn.ModuleDict({"q": change})}))
    x = torch.randn(8, TOKENS // 8, width, device=device, requires_grad=True)
    grad = torch.randn(8, TOKENS // 8, out, device=device)
    return {"ours": lambda: ours(x).backward(grad), "theirs": lambda: theirs["layer"](x).backward(grad)}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
