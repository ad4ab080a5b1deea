"""Two processes on one machine train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vision_peft.test_fit import farthest
from vision_peft.commands import main

LINE = "fit --recipe digits --batch_size 20 --trainer.max_epochs 2 --trainer.accelerator cpu --data"


def test_two_processes_equal_one(small_data: str, tmp_path: Path) -> None:
    two = f"{LINE} {small_data} --out {tmp_path}/two --trainer.devices 2 --trainer.strategy ddp"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "vision_peft.commands", *two.split()], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(done.stdout.splitlines()) == 1 and len(set(told)) == len(told)  # nothing twice, no other's notes
    assert sum("epoch 2/2" in line for line in told) == 1
    assert main([*LINE.split(), small_data, "--out", str(tmp_path / "one")]) == 0
    assert farthest(tmp_path / "one", tmp_path / "two") < 1e-5
    one, other = (tmp_path / name / "predictions.csv" for name in ("one", "two"))
    rows = [[line.rsplit(",", 3) for line in path.read_text().splitlines()] for path in (one, other)]
    assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]  # each picture once, in order


def test_a_batch_must_divide(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    two = f"{LINE} digits --out {tmp_path}/run --trainer.devices 2 --trainer.strategy ddp --batch_size 101"
    assert main(two.split()) == 2
    assert "a batch of 101 does not divide among 2 devices" in capsys.readouterr().err
