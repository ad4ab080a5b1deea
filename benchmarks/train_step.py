"""Time of a training step, as a ratio to the floor: the frozen model's forward and its input-gradient backward.

python -m benchmarks.train_step                     # ViT-S/16, batch 8, float32; bf16 too where the processor has it
python -m benchmarks.train_step --only lora PEFT    # rows whose name holds one of these words
python -m benchmarks.train_step --device cuda --compile --batch 64
python -m benchmarks.train_step --merging never     # fix a choice of the kernels: is the other one faster here?
"""

import torch

from benchmarks.kernel_choices import add_choices, choose
from benchmarks.measuring import add_precision, interleaved, machine, options, precisions, ratios, write_ratios
from benchmarks.ratio_table import counterpart
from benchmarks.variants import Trainer, chosen
from peft_core.counting import count_flops


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--every", action="store_true", help="all methods of the core, at their defaults")
    add_precision(parser, "both")
    parser.add_argument("--flops", action="store_true", help="count floating-point operations too")
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND",
                        help="torch.compile every model, the floor's too")  # fmt: skip
    add_choices(parser)
    args = parser.parse_args()
    choose(args)
    for precision in precisions(args):
        trainers = {
            v.name: Trainer(v, args.arch, args.batch, precision == "bf16", args.device, args.compile)
            for v in chosen(args.only, args.arch if args.every else None)
        }
        flops = {name: count_flops(trainer.step) for name, trainer in trainers.items()} if args.flops else {}
        seconds = interleaved({name: trainer.step for name, trainer in trainers.items()}, args.rounds, args.device)
        found = ratios(seconds, "floor")
        part = f"{args.arch}, batch {args.batch}, {precision}{f', {args.compile}' if args.compile else ''}"
        print(f"\n{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
        print(f"| {'variant':34} | time to floor | FLOPs to floor |\n|---|---|---|")
        for name in trainers:
            share = f"{flops[name] / flops['floor']:.2f}" if flops else "–"
            print(f"| {name:34} | {found[name]:.2f} | {share} |", flush=True)
            write_ratios(args.ratios, part, name, time=found[name])
        for mine, theirs in ((name, counterpart(name)) for name in found if counterpart(name) in found):
            faster = ratios(seconds, mine)[theirs]
            print(
                f"{mine}: {faster:.2f} × faster than HF PEFT, outputs differ by at most {difference(trainers, mine, theirs):.1e}"
            )


@torch.no_grad()
def difference(trainers: dict[str, Trainer], mine: str, theirs: str) -> float:
    """Largest output difference once our adapter and head hold Hugging Face's trained values."""
    ours, hf = trainers[mine].model.eval(), trainers[theirs].model.eval()
    values = dict(hf.named_parameters())
    for key, parameter in ours.named_parameters():
        path, _, slot = key.partition(".peft.lora.")
        if slot:
            matrix = slot.rpartition(".")[2]
            parameter.copy_(values[f"base_model.model.{path}.lora_{matrix}.default.weight"])
        elif parameter.requires_grad:
            layer, _, name = key.rpartition(".")
            parameter.copy_(values[f"base_model.model.{layer}.modules_to_save.default.{name}"])
    x = trainers[mine].x
    return (ours(x) - hf(x)).abs().max().item()


if __name__ == "__main__":
    main()
