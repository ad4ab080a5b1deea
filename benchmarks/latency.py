"""Time of a forward pass under no_grad, as a ratio to the stock model's: merged methods, and unmerged ones.

python -m benchmarks.latency
"""

import timm
import torch
from torch import nn

from benchmarks.measuring import interleaved, machine, options, pictures, ratios, write_ratios
from benchmarks.variants import chosen
from peft_core import NotMergeable, merge
from peft_core.attach import is_inserted


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name holds one of these words")
    args = parser.parse_args()
    models: dict[str, nn.Module] = {"stock": timm.create_model(args.arch, num_classes=100).eval()}
    for variant in chosen(args.only):
        if variant.prefix or variant.name == "floor":
            continue
        model = variant.make(timm.create_model(args.arch, num_classes=100)).eval()
        models[variant.name] = model
        if any(is_inserted(key) for key, _ in model.named_parameters()):
            merged = variant.make(timm.create_model(args.arch, num_classes=100)).eval()
            try:
                models[f"{variant.name}, merged"] = merge(merged)
            except NotMergeable:
                continue
    x = pictures(models["stock"], args.batch, args.device)
    models = {name: model.to(args.device) for name, model in models.items()}
    with torch.inference_mode():
        seconds = interleaved(
            {name: lambda model=model: model(x) for name, model in models.items()}, args.rounds, args.device
        )
    part = f"{args.arch}, batch {args.batch}, float32, forward"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    print(f"| {'variant':42} | time to stock |\n|---|---|")
    for name, ratio in ratios(seconds, "stock").items():
        print(f"| {name:42} | {ratio:.2f} |")
        write_ratios(args.ratios, part, name, time=ratio)


if __name__ == "__main__":
    main()
