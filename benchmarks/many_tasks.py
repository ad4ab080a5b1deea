"""Time of many tasks at one inference, as a ratio to one pass of the bare backbone: side networks and heads over one frozen pass.

python -m benchmarks.many_tasks                   # ViT-B/16, 19 tasks, LST of reduction 16, batch 8
"""

import copy

import timm
import torch

from benchmarks.measuring import interleaved, machine, options, pictures, ratios, write_ratios
from peft_core import adapt
from peft_core.passes.together import Together


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_base_patch16_224")
    parser.add_argument("--tasks", type=int, default=19)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reduction", type=int, default=16)
    args = parser.parse_args()
    device = args.device
    with device:
        stock = timm.create_model(args.arch, num_classes=100).eval()
        frozen = {id(tensor): tensor for tensor in stock.parameters()}
        x = pictures(stock, args.batch, device)
    models = {}
    for name, method, settings in (
        ("linear", "linear", {}),
        (f"lst, reduction {args.reduction}, 12 heads", "lst", {"reduction": args.reduction}),
        (f"lst, reduction {args.reduction}, 3 heads", "lst", {"reduction": args.reduction, "heads": 3}),
    ):
        adapted = (adapt(copy.deepcopy(stock, dict(frozen)), method, **settings).eval() for _ in range(args.tasks))
        models[name] = Together(adapted)
    runs = {"one pass": lambda: stock(x)}
    runs |= {name: lambda together=together: together(x) for name, together in models.items()}
    with torch.inference_mode():
        found = ratios(interleaved(runs, args.rounds, device, of_process=True), "one pass")
    part = f"{args.arch}, batch {args.batch}, {args.tasks} tasks"
    print(f"{part}, {machine(device)}\n| {'method':34} | to one pass | each alone |\n|---|---|---|")
    for name, ratio in found.items():
        print(f"| {name:34} | {ratio:.2f} | {args.tasks if name in models else 1} |")
        write_ratios(args.ratios, part, name, time=ratio)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
