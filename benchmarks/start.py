"""How long the programs take to answer, beside `import torch`: seconds of CPU, ratios, the ten slowest imports of a fit.

python -m benchmarks.start [--repeat 3]
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = {
    "vision_peft": "vision_peft.commands",
    "clip_peft": "clip_peft.commands",
    "diffusion_peft": "diffusion_peft.commands.main",
}
ANSWERS = ("list methods", "--help", "fit --help", "fti", "fit --data digts")
"""Lines that nothing heavy must be imported for: at most 1.3 × `import torch`."""
FIT = "fit --data digits --trainer.max_steps 1 --trainer.accelerator cpu --out {out}/{number}"


def seconds(code: list[str]) -> float:
    """CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def calling(program: str, line: str) -> list[str]:
    return ["-c", f"import sys; from {PROGRAMS[program]} import main; sys.exit(main({line.split()!r}))"]


def slowest(code: list[str], count: int = 10) -> list[tuple[float, str]]:
    """The packages, two names deep, whose own files take longest to import: (share of all imports, name)."""
    done = subprocess.run([sys.executable, "-X", "importtime", *code], capture_output=True, text=True, encoding="utf-8")
    own: dict[str, int] = {}
    for match in re.finditer(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        name = ".".join(match[2].split(".")[:2])
        own[name] = own.get(name, 0) + int(match[1])
    total = sum(own.values())
    return sorted(((time / total, name) for name, time in own.items()), reverse=True)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="processes each, of which the median counts")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="starting takes place on the processor")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as out:
        lines = {"import torch": [["-c", "import torch"]] * repeat}
        for program in PROGRAMS:
            for line in ANSWERS:
                lines[f"{program} {line}"] = [calling(program, line)] * repeat
        fits = [calling("vision_peft", FIT.format(out=Path(out), number=number)) for number in range(repeat + 1)]
        lines["vision_peft fit, one step on digits"] = fits[:repeat]
        floor = None
        for name, codes in lines.items():
            taken = statistics.median(seconds(code) for code in codes)
            floor = floor or taken
            print(f"{name:<45} {taken:6.2f} s  {taken / floor:5.2f} ×", flush=True)
        print("\nslowest imports of that fit, as shares of all of them:")
        for share, name in slowest(fits[-1]):
            print(f"  {100 * share:5.1f} %  {name}")


if __name__ == "__main__":
    main()
