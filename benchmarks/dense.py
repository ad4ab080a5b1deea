"""Pixels, depths and boxes of drawn tasks: figures of some methods over seeds, a table for each data set.

    python -m benchmarks.dense --out sweeps/dense
    python -m benchmarks.dense --out sweeps/boxes --data world/detect/rooms --head pyramid --seeds 0

Each run is `vision_peft fit` with the task and the recipe of the data, trained on train + val and scored once on test; finished
ones are not run again, and one that was stopped goes on.
"""

from __future__ import annotations

import os
import time

from peft_data.names import task_of

from benchmarks.measuring import options

DATA = ("world/dense/things", "world/dense/rooms", "world/dense/patterns", "world/depth/rooms", "world/detect/things")
METHODS = ("linear", "lora_all", "mona", "lo_rand", "full")
LR = {"linear": 1e-2, "full": 5e-4}
"""Learning rates that differ from the recipe's: of a head alone, and of all weights."""


def main(argv: list[str] | None = None) -> str:
    parser = options(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="0 is the recipe's number")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--lr", type=float, help="of all methods; by default the recipe's, and what LR says")
    chosen = parser.parse_args(argv)
    from vision_peft.compare import compare
    from vision_peft.fit import fit

    folders = {data: f"{chosen.out}/{data.replace('/', '-')}" for data in chosen.data}
    print("load", *(f"{each:.1f}" for each in os.getloadavg()), flush=True)
    for seed in chosen.seeds:
        for data in chosen.data:
            for method in chosen.methods:
                how = {"epochs": chosen.epochs, "backbone": chosen.backbone}
                how |= {
                    "dense": {"size": chosen.size, "head": chosen.head},
                    "trainer": {"accelerator": chosen.device.type},
                }
                if (lr := chosen.lr or LR.get(method)) is not None:
                    how["lr"] = lr
                out = f"{folders[data]}/{method}-{seed}"
                began = time.process_time()
                fit(data=data, task=task_of(data) or "segment", method=method, seed=seed, out=out, **how)
                print(f"{out}: {time.process_time() - began:.0f} CPU seconds", flush=True)
    print("load", *(f"{each:.1f}" for each in os.getloadavg()))
    return compare(list(folders.values()))


if __name__ == "__main__":
    main()
