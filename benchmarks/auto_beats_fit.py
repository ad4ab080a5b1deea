"""Does `vision_peft auto` beat `fit`'s defaults? Test accuracy of both, trained alike at the end, by data set and seed.

python -m benchmarks.auto_beats_fit --data digits world/count world/flowers [--seeds 0 1 2] [--epochs 0] [--methods lora linear]

It goes on where it was stopped. Both end with a training on train + val of the same number of epochs, scored once on test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics

from vision_peft.auto import auto
from vision_peft.fit import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "world/count", "world/flowers", "world/road"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--out", default="runs/auto_beats_fit")
    given = parser.parse_args()
    print("| data | seed | fit | auto | chosen | seconds of search |\n|---|---:|---:|---:|---|---:|", flush=True)
    for data in given.data:
        gains = []
        for seed in given.seeds:
            folder = f"{given.out}/{data.strip('./~').replace('/', '_')}-seed{seed}"
            common = {"data": data, "seed": seed, "epochs": given.epochs}
            with contextlib.redirect_stdout(io.StringIO()):
                plain = fit(**common, out=f"{folder}-fit")
                found = auto(**common, methods=given.methods, out=f"{folder}-auto")
            chosen = found["search"]["chosen"]
            gains.append(100 * (found["accuracy"] - plain["accuracy"]))
            words = f"{chosen['method']}, {chosen['recipe']}, lr {chosen['lr']:g}"
            print(f"| {data} | {seed} | {100 * plain['accuracy']:.1f} | {100 * found['accuracy']:.1f} | {words} | "
                  f"{found['search']['seconds']:.0f} |", flush=True)  # fmt: skip
        print(f"| {data} | mean | | {statistics.mean(gains):+.1f} | | |", flush=True)


if __name__ == "__main__":
    main()
