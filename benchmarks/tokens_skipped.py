"""What a model costs whose blocks see some of the tokens alone (CoDA): FLOPs and time of a forward pass under no_grad, as ratios
to an adapter of the same width behind all of them.

python -m benchmarks.tokens_skipped
"""

from typing import Any

import timm
import torch
from torch import nn

from benchmarks.measuring import interleaved, machine, options, pictures, ratios, write_ratios
from peft_core import adapt
from peft_core.counting import count_flops


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--reductions", type=float, nargs="*", default=[1.5, 2, 3, 5])
    args = parser.parse_args()
    models = {"all tokens": adapted(args.arch, "adapter", position="parallel").to(args.device)}
    models |= {f"1 of {r:g}": adapted(args.arch, "coda", reduction=r).to(args.device) for r in args.reductions}
    x = pictures(models["all tokens"], args.batch, args.device)
    with torch.inference_mode():
        flops = {name: count_flops(lambda m=m: m(x)) for name, m in models.items()}
        used = interleaved({name: lambda m=m: m(x) for name, m in models.items()}, args.rounds, args.device)
    part = f"{args.arch}, batch {args.batch}, float32"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    print("| blocks see | FLOPs | forward |\n|---|---|---|")
    forward = ratios(used, "all tokens")
    for name in forward:
        least = flops[name] / flops["all tokens"]
        print(f"| {name:10} | {least:.2f} | {forward[name]:.2f} |")
        write_ratios(args.ratios, part, f"coda, {name}", flops=least, forward=forward[name])


def adapted(arch: str, method: str, **hyper: Any) -> nn.Module:
    return adapt(timm.create_model(arch, num_classes=100), method, bottleneck=64, **hyper).eval()


if __name__ == "__main__":
    main()
