"""One table of the ratios that benchmarks wrote with --ratios: to the floor, and to Hugging Face PEFT where it has the row.

python -m benchmarks.ratio_table FILE
"""

import argparse
import json
from pathlib import Path
from typing import Any

FIGURES = ("time", "kept", "peak")
WORSE = 1.02
"""Above this, measuring again rarely changes who is ahead."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(table([json.loads(line) for line in parser.parse_args().file.read_text(encoding="utf-8").splitlines()]))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one name are joined: benchmarks measure time, kept bytes and peak memory apart."""
    joined: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        figures = {name: row[name] for name in FIGURES if name in row}
        joined.setdefault((row["part"], row["row"]), {}).update(figures)
    lines = [
        "| part | row | time | kept bytes | peak memory | to PEFT: time | kept bytes | peak memory |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (part, row), found in joined.items():
        theirs = joined.get((part, counterpart(row)), {})
        beside = [f"{shown(_ratio(found, theirs, name))}{_mark(found, theirs, name)}" for name in FIGURES]
        lines.append("| " + " | ".join([part, row, *(shown(found.get(name)) for name in FIGURES), *beside]) + " |")
    return "\n".join(lines)


def counterpart(row: str) -> str:
    """The name of Hugging Face PEFT's row for one of ours."""
    return (
        f"HF PEFT{row.removeprefix('ours')}" if row.startswith("ours, ") else f"HF PEFT LoRA{row.removeprefix('lora')}"
    )


def _ratio(ours: dict[str, float], theirs: dict[str, float], name: str) -> float | None:
    return ours[name] / theirs[name] if name in ours and name in theirs else None


def _mark(ours: dict[str, float], theirs: dict[str, float], name: str) -> str:
    return " worse" if (_ratio(ours, theirs, name) or 0) > WORSE else ""


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
