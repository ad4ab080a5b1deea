"""Memory of a training step, as a ratio to the floor: bytes kept for backward (each storage once) and peak allocation.

python -m benchmarks.memory                       # ViT-S/16, batch 8, float32
python -m benchmarks.memory --only lora ssf       # rows whose name holds one of these words
"""

import argparse
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile

from benchmarks.variants import Trainer, chosen, machine
from peft_core.counting import kept_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    rows = {}
    for variant in chosen(args.only):
        trainer = Trainer(variant, args.arch, args.batch, args.bf16)
        rows[variant.name] = (kept_bytes(trainer.loss, trainer.model), step_peak(trainer))
    kept, peak = rows["floor"]
    print(f"{args.arch}, batch {args.batch}, {'bf16' if args.bf16 else 'float32'}, {machine()}")
    print(f"floor: {kept / 2**20:.1f} MiB kept, {peak / 2**20:.1f} MiB peak beyond weights")
    print(f"| {'variant':34} | kept to floor | peak to floor |\n|---|---|---|")
    for name, (own_kept, own_peak) in rows.items():
        print(f"| {name:34} | {own_kept / kept:.2f} | {own_peak / peak:.2f} |")


def step_peak(trainer: Trainer) -> int:
    """Largest sum of live allocations within one step (after a first one, so that optimiser state is there)."""
    trainer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        trainer.step()
    live = peak = 0
    records = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    for record in sorted(records, key=lambda record: record.start_ns()):
        live += record.nbytes()  # negative where memory is freed
        peak = max(peak, live)
    return peak


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
