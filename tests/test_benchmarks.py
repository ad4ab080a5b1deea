"""Benchmarks start, say what they take, and run to their end at the smallest sizes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measuring import interleaved, machine, peak, ratios, seconds, usable, wanted, write_ratios
from benchmarks.ratio_table import table

ROOT = Path(__file__).parent.parent
FILES = sorted(
    f for f in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in f.read_text(encoding="utf-8")
)
ON_CPU_ALONE = {"auto_against_fit", "control_table", "input_pipeline", "noah_table", "offload", "ratio_table", "start"}
"""They train whole runs by the programs, measure the processor or its memory, or measure nothing."""


def run(*command: str, seconds: int) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


@pytest.mark.parametrize("file", [f for f in FILES if f.stem not in ON_CPU_ALONE], ids=lambda file: file.stem)
def test_every_benchmark_takes_a_device(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", [file.stem, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{file.stem}").main()
    help = capsys.readouterr().out
    assert "--device {cpu,cuda}" in help and f"python -m benchmarks.{file.stem}" in help


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    done = run("bash", "benchmarks/on_gpu.sh", "--device", "cpu", "--quick", seconds=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert ": 0 differences" in done.stdout and "| part | row | time |" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "ratios.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"time", "kept", "peak"} <= {key for row in rows for key in row}
    assert {"lora r8 qkv", "HF PEFT LoRA r8 qkv", "ours, attention", "packed (ours)"} <= {row["row"] for row in rows}


def test_a_device_that_is_not_there_is_refused():
    refused = run("bash", "benchmarks/on_gpu.sh", "--device", seconds=60)
    assert refused.returncode != 0 and "cpu or cuda" in refused.stderr
    if not torch.cuda.is_available():
        with pytest.raises(Exception, match="no GPU: take --device cpu"):
            usable("cuda")
    with pytest.raises(Exception, match="not on mps"):
        usable("mps")


def test_ratios_are_medians_of_rounds():
    assert ratios({"base": [1.0, 2.0, 4.0], "own": [2.0, 2.0, 12.0]}, "base") == {"base": 1.0, "own": 2.0}
    calls: list[str] = []
    taken = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 2, of_process=True)
    assert calls == ["a", "b"] * 3 and [len(times) for times in taken.values()] == [2, 2]
    assert seconds(lambda: None) >= 0 and "torch" in machine()


def test_peak_counts_what_lives_at_once():
    def run() -> None:
        for _ in range(3):
            torch.zeros(2**18)

    assert 2**20 <= peak(run) < 2 * 2**20


def test_rows_are_chosen_by_words_or_by_a_whole_name():
    names = ["lora", "lora, last half", "ssf"]
    assert wanted([], names) == names
    assert wanted(["lora"], names) == ["lora"]
    assert wanted(["last", "ssf"], names) == names[1:]


def test_the_table_joins_figures_and_compares_with_peft(tmp_path: Path):
    file = tmp_path / "ratios.jsonl"
    write_ratios(None, "vit", "lora r8", time=1.0)
    write_ratios(file, "vit", "HF PEFT LoRA r8", time=1.5)
    write_ratios(file, "vit", "lora r8", time=1.2)
    write_ratios(file, "vit", "lora r8", kept=1.0, peak=2.0)
    write_ratios(file, "vit", "HF PEFT LoRA r8", kept=2.0, peak=1.0)
    lines = table([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]).splitlines()
    assert lines[2:] == [
        "| vit | HF PEFT LoRA r8 | 1.50 | 2.00 | 1.00 | – | – | – |",
        "| vit | lora r8 | 1.20 | 1.00 | 2.00 | 0.80 | 0.50 | 2.00 worse |",
    ]
