"""The six controls on the reference model: the same conditions, steps and seeds, judged together by `evaluate`.

python -m benchmarks.control_table --out runs/controls                      # the whole table: 2 seeds, 1,000 steps
python -m benchmarks.control_table --out runs/controls --steps 200 --seeds 0 --base FOLDER
python -m benchmarks.control_table --out runs/joins --joins                 # zero convolutions against cross normalisation

A run that is there is not trained again; stopped, it goes on. `OUT/table` has the table, a grid of every run, and with
--joins obedience against steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffusion_peft.commands.evaluate import evaluate
from diffusion_peft.commands.fit import fit
from diffusion_peft.control.plots import against_steps
from diffusion_peft.training.snapshots import SNAPSHOTS
from peft_core.files import write_files

TABLE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "controlnet": ("canny", {}, {"lr": 1e-3}),
    "control_lora": ("canny", {}, {"lr": 2e-3}),
    "controlnext": ("canny", {"width": 16}, {"lr": 1e-3}),
    "t2i_adapter": ("canny", {}, {"lr": 1e-3}),
    "ip_adapter": ("picture", {}, {"lr": 1e-3, "caption_dropout": 0.5}),
    "ip_adapter, plus": ("picture", {"plus": True}, {"lr": 3e-4, "caption_dropout": 0.5}),
    "gligen": ("box", {}, {"lr": 3e-3}),
}
"""Condition, the method's settings and training's. Learning rates for a model of 6 million parameters: 1e-4 learns nothing in
600 steps (edge F1 of ControlNet 0.158, the base's), 1e-3 does (0.858). Drawn captions say all but places, so a picture as prompt
teaches little beside them: every second one is left out there (with one in ten, pictures drawn after 1,000 steps are not nearer
to their prompt than the base's)."""
OPTIONS: dict[str, dict[str, Any]] = {
    "ip_adapter": {"drop": 0.1},
    "gligen": {"drop": 0.1, "early": True},
    "t2i_adapter": {"early": True},
}
JUDGED = 8
"""How often on the way the two joins are judged."""


def train(name: str, seed: int, args: argparse.Namespace, keep_every: int = 0, **more: Any) -> Path:
    condition, hyper, settings = TABLE[name]
    method = name.partition(",")[0]
    label = "-".join([name.replace(", ", "_"), *map(str, more.values()), f"steps{args.steps}", f"seed{seed}"])
    out = args.out / label
    fit(data=f"world/control/{args.condition or condition}", base=args.base, method={"name": method} | hyper | more,
        control=OPTIONS.get(method, {}), seed=seed, steps=args.steps, batch_size=args.batch, sample_steps=20, guidance=4.0,
        keep_every=keep_every, out=str(out), **settings)  # fmt: skip
    return out


def judge(runs: list[Path], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    return evaluate(
        run=[str(run) for run in runs], out=str(out), count=args.count, steps=20, guidance=4.0, overwrite=True
    )


def joins(args: argparse.Namespace) -> None:
    """Obedience of both ways to join ControlNet's branch, on their way."""
    every = max(1, args.steps // JUDGED)
    lines, rows = {}, []
    for join in ("zero", "norm"):
        run = train("controlnet", args.seeds[0], args, keep_every=every, join=join)
        kept = [run / SNAPSHOTS / f"step{step}" for step in range(every, args.steps + 1, every)]
        found = judge(kept, args.out / "judged" / join, args)["runs"]
        rows_of = [row for row in found if "steps" in row]
        start = [{"steps": 0} | found[0]] if join == "zero" else []  # zero convolutions start as the base
        mine = [{"join": join, "steps": row["steps"], "edge_f1": row["edge_f1"]} for row in start + rows_of]
        lines[join] = [(row["steps"], row["edge_f1"]) for row in mine]
        rows += mine
    files = {"joins.png": against_steps(lines, "edge F1"), "joins.json": json.dumps(rows, indent=2).encode()}
    write_files(args.out / "table", files)
    print(f"written: {args.out / 'table' / 'joins.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--base", default="reference")
    parser.add_argument("--methods", nargs="*", default=list(TABLE))
    parser.add_argument("--condition", help="the same for all methods that take pictures")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--count", type=int, default=2, help="pictures a held-out condition")
    parser.add_argument("--joins", action="store_true")
    args = parser.parse_args()
    if args.joins:
        joins(args)
        return
    runs = [train(name, seed, args) for seed in args.seeds for name in args.methods]
    judge(runs, args.out / "table", args)


if __name__ == "__main__":
    main()
