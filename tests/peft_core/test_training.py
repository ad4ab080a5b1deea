"""Lightning's Trainer as this suite uses it."""

import pytest

from peft_core import PeftError
from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.jobs.runs.training import make_trainer, planned_steps, quiet

CPU = {"accelerator": "cpu"}


def test_flags_are_lightnings_own() -> None:
    from peft_core.jobs.cli.options import hints

    flags = set(hints(TrainerFlags.accepts(""))) - TrainerFlags.hidden
    assert {"max_epochs", "devices", "strategy", "precision", "accumulate_grad_batches", "gradient_clip_val"} <= flags
    assert not {"logger", "callbacks", "enable_progress_bar"} & flags


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 15),
    ],
)
def test_planned_steps(flags: dict, steps: int) -> None:
    assert planned_steps(make_trainer(CPU | flags, []), 10) == steps


def test_training_without_end() -> None:
    with pytest.raises(PeftError, match="training needs an end"):
        planned_steps(make_trainer(CPU | {"max_epochs": -1}, []), 10)


def test_flags_that_lightning_refuses() -> None:
    for flags in ({"accelerator": "quantum"}, CPU | {"precision": "17"}, CPU | {"devices": 0}):
        with pytest.raises(PeftError, match="Lightning refuses the --trainer options"):
            make_trainer(flags, [])
    with pytest.raises(PeftError, match="use ddp"):
        make_trainer(CPU | {"strategy": "ddp_spawn"}, [])
    with pytest.raises(PeftError, match="--trainer.devices 4000 are as many processes, too many"):
        make_trainer(CPU | {"devices": 4000}, [])


def test_being_stopped_is_an_interrupt() -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    for stop, code in ((SystemExit(1), 130), (SIGTERMException(), 143)):
        with pytest.raises(KeyboardInterrupt) as caught, quiet():
            raise stop
        assert caught.value.args == (code,)
