"""A sweep's folder: whose plan it holds, and which runs in it are finished.

config.yaml   the plan; `PROGRAM sweep --config FOLDER` runs it again
runs/TASK/METHOD/[POINT/]test-seed0/          a run folder: config.yaml, results.json, adapter/
errors/       tracebacks of failing runs
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peft_core.errors import PeftError
from peft_core.files import is_used, read_yaml, write_files
from peft_core.jobs.runs.folder import CONFIG, RESULTS, read_results
from peft_core.jobs.sweep.jobs import Job

LOCK = ".lock"
LEAST_FREE = 100 << 20


class SweepFolder:
    """The folder of one sweep; within `with` no other process runs it.

    Args:
        own: names that a folder without a plan may hold and be this sweep's.
    """

    def __init__(
        self, path: str, plan: dict[str, Any], overwrite: bool, program: str, own: Collection[str] = ()
    ) -> None:
        self.program = program
        self.path = Path(path).expanduser().absolute()
        if self.path.is_file():
            raise PeftError(f"{self.path} is a file: give --out another folder.")
        config = self.path / CONFIG
        if config.is_file():
            content = read_yaml(config)
            if content.get("command") != program:
                raise PeftError(f"{self.path} holds something else than a sweep: give --out another folder.")
            new = {key for key in plan if key not in content and not plan[key]}  # options that the folder is older than
            differing = [key for key in plan if key not in new and content.get(key) != plan[key]]
            if differing and not overwrite:
                key = differing[0]
                raise PeftError(
                    f"{self.path} holds another sweep ({key} is {content.get(key)} there, {plan[key]} here): give another "
                    "--out, or --overwrite to change its plan; runs that both plans have are kept."
                )
        elif is_used(self.path, own={LOCK, *own}):
            raise PeftError(f"{self.path} holds files that are no sweep's: give --out another folder.")
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_space()
        self.lock = FileLock(self.path / LOCK)
        self.plan = plan

    def __enter__(self) -> SweepFolder:
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise PeftError(f"another process is running the sweep {self.path}: wait for it, or stop it.") from error
        self.write_plan()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.lock.release()
        if isinstance(error, KeyboardInterrupt):
            error.args = (*(error.args or (130,)), "the same command goes on with the runs that are not finished")

    def check_space(self) -> None:
        free = shutil.disk_usage(self.path).free
        if free < LEAST_FREE:
            raise PeftError(
                f"{self.path} has {free / 2**20:.0f} MiB of free space, too little for adapters and results: make room or "
                "give --out a folder on another disk."
            )

    def write_plan(self) -> None:
        import yaml

        text = f"# Run this again, or go on with it: {self.program} --config {shlex.quote(str(self.path))}\n"
        content = {"command": self.program} | self.plan | {"out": str(self.path)}
        write_files(self.path, {CONFIG: (text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode()})

    def results(self, job: Job) -> dict[str, Any] | None:
        """The results of a finished run, whatever version made them."""
        path = self.path / job.folder / RESULTS
        return read_results(path.parent) if path.is_file() else None

    def is_finished(self, job: Job) -> bool:
        return (self.path / job.folder / RESULTS).is_file()

    def note_error(self, job: Job, trace: str) -> None:
        name = job.folder.removeprefix("runs/").replace("/", " ") + ".txt"
        if trace:
            write_files(self.path / "errors", {name: trace.encode()})
        else:
            (self.path / "errors" / name).unlink(missing_ok=True)
