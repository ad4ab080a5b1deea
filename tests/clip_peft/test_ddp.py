"""Two processes on one machine train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_peft.commands import main


@pytest.mark.slow  # vision_peft's stands for it: what divides work among processes is shared
def test_two_processes_equal_one(backbone: str, photos: str, tmp_path: Path) -> None:
    line = f"fit --data {photos} --backbone {backbone} --method coop --method.context 3 --shots 4 --epochs 2 --batch_size 8"
    line += f" --augment none --data.cache_dir {tmp_path}/cache --trainer.accelerator cpu --out {tmp_path}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    two = f"{line}/two --trainer.devices 2 --trainer.strategy ddp".split()
    command = [sys.executable, "-m", "clip_peft.commands", *two]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # nothing twice
    assert main(f"{line}/one".split()) == 0
    learnt = [load_file(tmp_path / name / "adapter/adapter.safetensors")["context"] for name in ("one", "two")]
    torch.testing.assert_close(*learnt, atol=1e-6, rtol=1e-5)
    one, other = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "two"))
    assert [row.split(",")[0] for row in one] == [row.split(",")[0] for row in other]
