"""Time of a forward pass under no_grad with adapters in the upper blocks alone (AdapterDrop), and of a training step that goes
without the first n, as ratios to all blocks.

python -m benchmarks.blocks_dropped
"""

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measuring import interleaved, machine, options, pictures, ratios, write_ratios
from peft_core import adapt


def step(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), labels).backward()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--method", default="adapter")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dropped", type=int, nargs="*", default=[0, 3, 5, 7, 9, 11])
    args = parser.parse_args()
    models = {n: adapted(args.arch, args.method, n).to(args.device) for n in args.dropped}
    x = pictures(next(iter(models.values())), args.batch, args.device)
    labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    with torch.inference_mode():
        used = interleaved({f"{n}": lambda m=m: m(x) for n, m in models.items()}, args.rounds, args.device)
    trained = interleaved({f"{n}": lambda m=m: step(m, x, labels) for n, m in models.items()}, args.rounds, args.device)
    part = f"{args.arch}, {args.method}, batch {args.batch}, float32"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    print("| blocks without | forward to all | training step to all |\n|---|---|---|")
    forward, training = ratios(used, f"{args.dropped[0]}"), ratios(trained, f"{args.dropped[0]}")
    for name in forward:
        print(f"| {name:14} | {forward[name]:.2f} | {training[name]:.2f} |")
        write_ratios(args.ratios, part, f"{name} blocks without", forward=forward[name], step=training[name])


def adapted(arch: str, method: str, dropped: int) -> nn.Module:
    """In eval mode, which these models train the same in, so that the blocks that go without are the given ones."""
    return adapt(timm.create_model(arch, num_classes=100), "adapter_drop", of=method, skip=range(dropped)).eval()


if __name__ == "__main__":
    main()
