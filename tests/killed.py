"""Runs in processes of their own, which may kill themselves in the middle of training."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

SERVER: Any = multiprocessing.get_context("forkserver")
"""Children start with all that tests' `preload` names imported, and are real processes."""
PRELOADED: dict[str, tuple[str, ...]] = {}


def preload(user: str, *modules: str) -> None:
    """What the children of a module of tests start with."""
    PRELOADED[user] = modules


def serve(users: set[str]) -> None:
    """Starts the one server of this process, which imports what these modules of tests named: before anyone else does."""
    if named := dict.fromkeys(name for user in PRELOADED.keys() & users for name in PRELOADED[user]):
        SERVER.set_forkserver_preload(["tests.conftest", *named, "tests.frozen"])
        forkserver.ensure_running()


def die_at(batch: int | None) -> None:
    """Has this process train on one thread, and killed behind that training batch, counted from 0 over all epochs."""
    import torch

    from peft_core.jobs.runs.training import SaveState

    torch.set_num_threads(1)
    plain = SaveState.on_train_batch_end

    def then_die(self, trainer, module, out, found, index) -> None:
        plain(self, trainer, module, out, found, index)
        if trainer.current_epoch * trainer.num_training_batches + index == batch:
            os.kill(os.getpid(), signal.SIGKILL)

    SaveState.on_train_batch_end = then_die


def exit_of(work: Callable, *arguments: Any) -> int | None:
    """The exit code of `work(*arguments)` in a process of its own."""
    child = SERVER.Process(target=work, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def left_alone(main: Callable[[list[str]], int], run: Any, said: str, capsys: Any) -> None:
    """The config of a finished run, given again, says so and changes no file."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["fit", "--config", str(run)]) == 0
    assert f"is finished already: {said}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
