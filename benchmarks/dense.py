"""Pixels or boxes of a drawn task: the figure of some methods over seeds.

    python -m benchmarks.dense --out sweeps/dense --data world/dense/rooms --size 64 --epochs 8
    python -m benchmarks.dense --out sweeps/boxes --data world/detect/rooms --head pyramid

Each run is `vision_peft fit` with the task of the data, trained on train + val and scored once on test; finished ones are not run
again.
"""

from __future__ import annotations

import os

from peft_data.names import task_of

from benchmarks.measuring import options

METHODS = ("linear", "lora_all", "mona", "lo_rand", "full")
LR = {"linear": 1e-2, "full": 5e-4}
"""Learning rates that differ from `--lr`: of a head alone, and of all weights."""


def main(argv: list[str] | None = None) -> str:
    parser = options(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data", default="world/dense/rooms")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--lr", type=float, default=5e-3)
    chosen = parser.parse_args(argv)
    from vision_peft.compare import compare
    from vision_peft.fit import fit

    print("load", *(f"{each:.1f}" for each in os.getloadavg()), flush=True)
    for seed in chosen.seeds:
        for method in chosen.methods:
            how = {"lr": LR.get(method, chosen.lr), "epochs": chosen.epochs, "backbone": chosen.backbone}
            how |= {"dense": {"size": chosen.size, "head": chosen.head}, "trainer": {"accelerator": chosen.device.type}}
            out = f"{chosen.out}/{method}-{seed}"
            fit(data=chosen.data, task=task_of(chosen.data) or "segment", method=method, seed=seed, out=out, **how)
    print("load", *(f"{each:.1f}" for each in os.getloadavg()))
    return compare([chosen.out])


if __name__ == "__main__":
    main()
