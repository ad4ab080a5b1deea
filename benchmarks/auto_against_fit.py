"""Does `vision_peft auto` beat `fit`'s defaults? Test accuracy of both, trained alike at the end, by data set and seed.

python -m benchmarks.auto_against_fit [--data digits world/road photos] [--seeds 0 1 2] [--epochs 0] [--methods lora linear]
    [--out runs/auto_against_fit]

Both end with a training on train + val of the same number of epochs, scored once on test. Each pair is a line of
OUT/results.csv as soon as it is done; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_core.files import write_files
from peft_core.jobs.reports.page import csv_bytes
from vision_peft.auto import auto
from vision_peft.fit import fit

RESULTS = "results.csv"
OF_PAIR = ("data", "seed", "epochs", "methods")
"""What tells one pair of runs from another."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "world/count", "world/flowers", "world/road"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--methods", nargs="+", help="auto's own list where none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/auto_against_fit"))
    given = parser.parse_args()
    rows = read(given.out / RESULTS)
    pairs: list[dict[str, str]] = [
        dict(zip(OF_PAIR, (data, str(seed), str(given.epochs), " ".join(given.methods or [])), strict=True))
        for seed in given.seeds
        for data in given.data
    ]
    for pair in pairs:
        if not any(pair.items() <= row.items() for row in rows):
            rows.append(pair | both(pair, given.methods, given.out))
            write_files(given.out, {RESULTS: csv_bytes(rows)})
            print(" ".join(rows[-1].values()), flush=True)
    print(table([row for pair in pairs for row in rows if pair.items() <= row.items()]))


def read(path: Path) -> list[dict[str, str]]:
    """The pairs that are done."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def both(pair: Mapping[str, str], methods: Sequence[str] | None, out: Path) -> dict[str, str]:
    """Accuracies of the two, in %, what `auto` chose, and the seconds that its search took."""
    name = "-".join((Path(pair["data"]).name, pair["epochs"], *(methods or []), f"seed{pair['seed']}"))
    common: dict[str, Any] = {"data": pair["data"], "seed": int(pair["seed"]), "epochs": int(pair["epochs"])}
    with contextlib.redirect_stdout(io.StringIO()):
        plain = fit(**common, out=str(out / f"{name}-fit"))
        found = auto(**common, methods=methods, out=str(out / f"{name}-auto"))
    chosen = found["search"]["chosen"]
    return {
        "fit": f"{100 * plain['accuracy']:.2f}",
        "auto": f"{100 * found['accuracy']:.2f}",
        "chosen": f"{chosen['method']}, {Path(chosen['recipe']).stem}, lr {chosen['lr']:g}",
        "seconds": f"{found['search']['seconds']:.0f}",
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line a data set: means over seeds, the mean and spread of the gain, and in how many pairs `auto` was ahead."""
    lines = ["| data | seeds | fit | auto | gain | ahead | level | chosen |", "|---|---:|---:|---:|---:|---:|---:|---|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        plain, found = ([float(row[key]) for row in own] for key in ("fit", "auto"))
        gains = [after - before for before, after in zip(plain, found, strict=True)]
        spread = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        chosen = "; ".join(dict.fromkeys(row["chosen"] for row in own))
        ahead, level = sum(gain > 0 for gain in gains), gains.count(0)
        lines.append(
            f"| {data} | {len(own)} | {statistics.mean(plain):.1f} | {statistics.mean(found):.1f} "
            f"| {statistics.mean(gains):+.1f}{spread} | {ahead} | {level} | {chosen} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
