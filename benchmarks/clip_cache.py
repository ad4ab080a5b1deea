"""A CoOp run on cached image features beside one that runs the image tower at each step: time, and accuracy on base and new.

Seconds are the process's CPU time on one thread (with a GPU the clock's), less that of a zero-shot run, which decodes, scores
and reports the same; those of the cached run hold the making of the cache. The two runs differ in their augmentations: `views`
fixed crops of each picture, or a new one each time.

python -m benchmarks.clip_cache                                  # the reference CLIP, world/open/objects, 16 shots
python -m benchmarks.clip_cache --epochs 200 --seeds 1 2 3
python -m benchmarks.clip_cache --backbone ViT-B-16/openai --data ~/photos
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from statistics import mean
from typing import Any

import torch

from benchmarks.measuring import clock, machine, options, write_ratios
from clip_peft.fit import fit
from clip_peft.use import report


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--data", default="world/open/objects")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.backbone}, {args.data}, {args.shots} shots, CoOp {args.epochs} epochs, {machine(args.device)}")
    print("| seed | cached: base | new | s | uncached: base | new | s | faster |\n|---|---|---|---|---|---|---|---|")
    trained(args, args.seeds[0], "zero_shot", 0)  # imports and first calls are no run's time
    rows = []
    for seed in args.seeds:
        rest = trained(args, seed, "zero_shot", 0)[2]
        cells: list[float] = []
        for views in (args.views, 0):
            base, new, seconds = trained(args, seed, "coop", views)
            cells += [base, new, seconds - rest]
        rows.append([*cells, cells[5] / cells[2]])
        print(line(str(seed), rows[-1]), flush=True)
    means = [mean(column) for column in zip(*rows, strict=True)]
    print(line("mean", means))
    write_ratios(args.ratios, f"CoOp run of {args.backbone}, {args.data}", "cached to uncached", time=1 / means[-1])


def trained(args: argparse.Namespace, seed: int, method: str, views: int) -> tuple[float, float, float]:
    """Accuracy in % on base and on new names, and the run's CPU seconds."""
    settings: dict[str, Any] = {"data": args.data, "backbone": args.backbone, "method": method, "shots": args.shots}
    settings |= {"classes": "base", "seed": seed, "epochs": args.epochs, "cache_views": views, "precision": "fp32"}
    trainer = {"accelerator": "gpu" if args.device.type == "cuda" else "cpu"}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data = {"name": args.data, "cache_dir": f"{folder}/cache"}
        now = clock(args.device, of_process=True)
        began = now()
        with contextlib.redirect_stderr(io.StringIO()):
            results = fit(**(settings | {"data": data, "out": f"{folder}/run", "trainer": trainer}))
        seconds = now() - began
        new = report(f"{folder}/run", None, "test", "new", cache=False, quiet=True)
    return 100 * results["accuracy"], 100 * new["accuracy"], seconds


def line(name: str, cells: list[float]) -> str:
    numbers = [f"{value:.1f}" for value in cells]
    return f"| {name} | " + " | ".join(numbers) + " × |"


if __name__ == "__main__":
    main()
