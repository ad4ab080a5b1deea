"""Does search pay? NOAH against its parts, a random subnet and each part alone at the same budget, over tasks and seeds.

python -m benchmarks.noah_table --out sweeps/noah          # goes on where it was stopped; --report prints what is there

Each task and seed is one folder of `vision_peft noah --baselines`, and beside it the parts at the width 8 (10 prompts) of the
paper's tables. Written: results.csv and table.md.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from peft_core.files import write_files
from peft_core.jobs.reports.page import csv_bytes
from vision_peft.noah.outcome import finished_row

TASKS = ("count", "road", "position", "cells", "street_digits", "orientation")
PARTS = {"lora_8": {"lora": 8}, "adapter_8": {"adapter": 8}, "vpt_10": {"vpt": 10}}
SAME_BUDGET = ("random", "uniform_lora", "uniform_adapter", "uniform_vpt")
COLUMNS = ("noah", *SAME_BUDGET, *PARTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=[f"world/{task}" for task in TASKS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is its own choice")
    parser.add_argument("--report", action="store_true", help="run nothing, print the table of what is there")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for seed in () if args.report else args.seeds:
        for task in args.tasks:
            run(task, seed, place(args.out, task, seed))
            write(args.out, args.tasks, args.seeds)
    print(write(args.out, args.tasks, args.seeds))


def place(out: Path, task: str, seed: int) -> Path:
    return out / task.replace("/", "_") / f"seed{seed}"


def run(task: str, seed: int, folder: Path) -> None:
    """What is missing of one task and seed."""
    from vision_peft.fit import fit
    from vision_peft.noah.command import noah

    noah(data=task, seed=seed, baselines=True, out=str(folder))
    for name, widths in PARTS.items():
        if name == "lora_8" and rank_8(folder):
            continue
        fit(data=task, seed=seed, method={"name": "noah", "widths": widths}, out=str(folder / "parts" / name))


def rank_8(folder: Path) -> bool:
    """Whether the uniform LoRA of this budget is LoRA-8 itself."""
    one = finished_row(folder / "baselines" / "uniform_lora")
    return one is not None and one["inserted"] == 36_864


def rows(out: Path, tasks: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        for seed in seeds:
            folder = place(out, task, seed)
            for name in COLUMNS:
                where = {"noah": folder / "retrain"} | {part: folder / "parts" / part for part in PARTS}
                found = finished_row(where.get(name, folder / "baselines" / name))
                if found is None and name == "lora_8" and rank_8(folder):
                    found = finished_row(folder / "baselines" / "uniform_lora")
                if found is not None:
                    yield {"task": task, "seed": seed, "what": name} | found


def write(out: Path, tasks: list[str], seeds: list[int]) -> str:
    """results.csv and table.md of what is finished; the table."""
    found = list(rows(out, tasks, seeds))
    text = table(found, tasks)
    write_files(out, {"results.csv": csv_bytes(found), "table.md": text.encode()})
    return text


def table(found: list[dict[str, Any]], tasks: list[str]) -> str:
    """Mean ± standard deviation over seeds, in per cent; then NOAH's gain over each column, paired by task and seed."""
    lines = [line(["task", "seeds", *COLUMNS]), line(["---", "--:", *["--:"] * len(COLUMNS)])]
    values = {(each["task"], each["seed"], each["what"]): 100 * each["accuracy"] for each in found}
    for task in tasks:
        cells = [[v for (t, _, what), v in values.items() if (t, what) == (task, column)] for column in COLUMNS]
        if cells[0]:
            lines.append(line([task, str(len(cells[0])), *map(spread, cells)]))
    sizes = [[each["inserted"] for each in found if each["what"] == column] for column in COLUMNS]
    lines.append(line(["inserted, mean", "", *(f"{statistics.mean(size):,.0f}" if size else "–" for size in sizes)]))
    gains = []
    for column in COLUMNS[1:]:
        pairs = [
            v - values[t, s, column] for (t, s, w), v in values.items() if w == "noah" and (t, s, column) in values
        ]
        gains.append(gain(pairs))
    lines.append(line(["NOAH's gain", "", "", *gains]))
    return "\n".join(lines) + "\n"


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def gain(pairs: list[float]) -> str:
    """Mean difference ± its standard error, and in how many pairs NOAH is ahead."""
    if len(pairs) < 2:
        return f"{pairs[0]:+.1f}" if pairs else "–"
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    return f"{statistics.mean(pairs):+.1f} ± {error:.1f} ({sum(each > 0 for each in pairs)}/{len(pairs)})"


if __name__ == "__main__":
    main()
