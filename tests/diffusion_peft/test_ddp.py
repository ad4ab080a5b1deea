"""Two processes on one machine train together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.mark.slow  # vision_peft's stands for it: what divides work among processes is shared
def test_two_processes(sd15: str, toys: str, balls: str, tmp_path: Path) -> None:
    line = (
        f"fit --base {sd15} --data {toys} --prompt toy --class_prompt ball --prior {balls} --prior_count 2 --batch_size 2 "
        f"--steps 3 --sample_count 1 --sample_steps 1 --lr 0.01 --out {tmp_path}/run --ema 0.5 "
        "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_peft.commands.main", *line.split()],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # nothing twice
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 3
    weights = load_file(tmp_path / "run" / "adapter" / "unet" / "adapter.safetensors")
    assert all(value.abs().sum() > 0 for value in weights.values())
