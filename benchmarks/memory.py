"""Memory of a training step, as a ratio to the floor: bytes kept for backward (each storage once) and peak allocation.

python -m benchmarks.memory                       # ViT-S/16, batch 8, float32
python -m benchmarks.memory --only lora ssf       # rows whose name holds one of these words
python -m benchmarks.memory --every --arch test_vit --batch 2      # that all methods run, in two minutes
"""

import torch

from benchmarks.kernel_choices import add_choices, choose
from benchmarks.measuring import add_precision, machine, options, peak, precisions, write_ratios
from benchmarks.variants import Trainer, chosen
from peft_core.counting import kept_bytes


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--every", action="store_true", help="all methods of the core, at their defaults")
    add_precision(parser, "float32")
    add_choices(parser)
    args = parser.parse_args()
    choose(args)
    for precision in precisions(args):
        rows = {}
        for variant in chosen(args.only, args.arch if args.every else None):
            trainer = Trainer(variant, args.arch, args.batch, precision == "bf16", args.device)
            rows[variant.name] = (kept_bytes(trainer.loss, trainer.model), step_peak(trainer))
        kept, most = rows["floor"]
        part = f"{args.arch}, batch {args.batch}, {precision}"
        print(f"\n{part}, {machine(args.device)}")
        print(f"floor: {kept / 2**20:.1f} MiB kept, {most / 2**20:.1f} MiB peak beyond weights")
        print(f"| {'variant':34} | kept to floor | peak to floor |\n|---|---|---|")
        for name, (own_kept, own_peak) in rows.items():
            print(f"| {name:34} | {own_kept / kept:.2f} | {own_peak / most:.2f} |")
            write_ratios(args.ratios, part, name, kept=own_kept / kept, peak=own_peak / most)


def step_peak(trainer: Trainer) -> int:
    """Of the second step: after the first, so that the optimiser's state is there."""
    trainer.step()
    return peak(trainer.step, trainer.device)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
