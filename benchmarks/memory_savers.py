"""What saves memory, each beside what it is measured by: side networks by LoRA's bytes kept for backward and peak of a step,
reversible blocks by full fine-tuning's, MeZO's step by inference, GaLore's state by Adam's.

python -m benchmarks.memory_savers                # ViT-S/16 and ViT-L/16, batch 8; the state of optimisers for SD 1.5's UNet too
python -m benchmarks.memory_savers --arch vit_small_patch16_224 --kept     # bytes kept alone: a forward pass each
"""

from collections.abc import Callable

import timm
import torch
from torch import nn

from benchmarks.diffusion_models import small_unet
from benchmarks.measuring import machine, options, peak, write_ratios
from benchmarks.memory import step_peak
from benchmarks.variants import Trainer, Variant, ours
from peft_core.counting import kept_bytes
from peft_core.optimizers.galore import GaLore
from peft_core.optimizers.mezo import MeZO

ROWS = [
    Variant("lora r8 q,v", ours("lora", rank=8, targets=("q", "v"))),
    Variant("lst", ours("lst")),
    Variant("res_tuning", ours("res_tuning")),
    Variant("side_tuning", ours("side_tuning", distill=0)),
    Variant("dtl", ours("dtl")),
    Variant("full fine-tuning", ours("full")),
    Variant("meft", ours("meft")),
]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", nargs="+", default=["vit_small_patch16_224", "vit_large_patch16_224"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kept", action="store_true", help="bytes kept alone, without steps")
    args = parser.parse_args()
    print(machine(args.device))
    for arch in args.arch:
        part = f"{arch}, batch {args.batch}"
        print(f"\n{part}, to LoRA\n| {'method':34} | kept | peak |\n|---|---|---|")
        base, measured = None, {}
        for variant in ROWS:
            trainer = Trainer(variant, arch, args.batch, device=args.device)
            found = kept_bytes(trainer.loss, trainer.model), 0 if args.kept else step_peak(trainer)
            base, measured[variant.name] = base or found, found
            kept, most = found[0] / base[0], found[1] / (base[1] or 1)
            print(f"| {variant.name:34} | {kept:.2f} | {'–' if args.kept else f'{most:.2f}'} |", flush=True)
            write_ratios(args.ratios, part, variant.name, kept=kept, **({} if args.kept else {"peak": most}))
        full, meft = measured["full fine-tuning"], measured["meft"]
        kept, most = meft[0] / full[0], meft[1] / (full[1] or 1)
        print(f"meft to full fine-tuning: kept {kept:.2f}{'' if args.kept else f', peak {most:.2f}'}", flush=True)
        write_ratios(args.ratios, part, "meft to full", kept=kept, **({} if args.kept else {"peak": most}))
        if not args.kept:
            found = mezo_to_inference(arch, args.batch, args.device)
            print(f"mezo's step to inference, full: {found:.2f}", flush=True)
            write_ratios(args.ratios, part, "mezo to inference", peak=found)
    print("\nGaLore's state to Adam's, full fine-tuning\n| model | rank 4 | rank 128 |\n|---|---|---|")
    for name, make in {arch: lambda arch=arch: timm.create_model(arch, num_classes=100) for arch in args.arch}.items():
        state_row(args.ratios, name, make)
    state_row(args.ratios, "UNet of SD 1.5", lambda: small_unet(320))


def mezo_to_inference(arch: str, batch: int, device: torch.device) -> float:
    """Peak beyond the weights, all of which MeZO trains."""
    trainer = Trainer(Variant("full", ours("full")), arch, batch, device=device)
    trainer.model.eval()
    optimizer = MeZO(trainer.trainables)

    @torch.no_grad()
    def inference() -> None:
        trainer.loss()

    inference()
    return peak(lambda: optimizer.step(trainer.loss), device) / peak(inference, device)


def state_row(file, name: str, make: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        model = make()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    adam = state_bytes(torch.optim.AdamW(model.parameters(), foreach=False))
    found = [state_bytes(GaLore(model.parameters(), rank=rank)) / adam for rank in (4, 128)]
    print(f"| {name:34} | {found[0]:.2f} | {found[1]:.2f} |")
    write_ratios(file, "GaLore's state to Adam's", name, rank_4=found[0], rank_128=found[1])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of tensors that hold something for each entry, after a step."""
    optimizer.step()
    tensors = [
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.dim()
    ]
    return sum(t.numel() * t.element_size() for t in tensors)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
