"""Jobs of a sweep on a Ray cluster, by Ray Tune with actors that are used again and keep what `work` keeps."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import CONFIG
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome
from peft_core.jobs.sweep.pool import Done, Parcel, Work

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayPool:
    """The same as `Pool`, on Ray.

    Args:
        address: of a cluster, as `ray.init` takes it (`auto`, `ray://…`, `host:port`); `local` starts Ray on this machine.
        count: runs at a time; 0 is as many as the cluster has room for.
        threads: of each run; 0 is 1.
        out: the sweep's folder, which every node must see under this path.
        work, parcel: as `Pool`'s.
    """

    def __init__(self, address: str, count: int, threads: int, out: Path, work: Work, parcel: Parcel) -> None:
        self.count, self.threads, self.out, self.work, self.parcel = count, threads or 1, out, work, parcel
        self.started = connect(address)
        import ray

        self.gpus = 1 if ray.cluster_resources().get("GPU") else 0

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        """Carries out all jobs, calling `done` as they end, in whatever order."""
        import ray.tune as tune

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failing run is told by `done`
        by_folder = {job.folder: job for job in jobs}
        if not by_folder:
            return
        parcels = [{"folder": folder, "parcel": self.parcel(job, self.out)} for folder, job in by_folder.items()]
        space = {"job": tune.grid_search(parcels), "out": str(self.out), "threads": self.threads}
        place, report = self.out / ".ray", callback_class()(by_folder, done)
        tuner = tune.Tuner(
            tune.with_resources(run_class(self.work), {"cpu": self.threads, "gpu": self.gpus}),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=self.count or None),
            run_config=tune.RunConfig(
                storage_path=str(place), verbose=0, callbacks=[report],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        finally:
            shutil.rmtree(place, ignore_errors=True)  # the results are in the run folders
        if report.stopped:
            raise report.stopped

    def close(self) -> None:
        import ray

        if self.started:
            ray.shutdown()


def connect(address: str) -> bool:
    """Connects this process to a Ray cluster; whether it was not connected before.

    Raises:
        PeftError: Ray is not installed, or no cluster answers.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    try:
        import ray
        import ray.tune
    except ModuleNotFoundError as error:
        raise PeftError(f"--ray needs the package {error.name}: pip install 'visual-peft[ray]'.") from error
    if ray.is_initialized():
        return False
    answers(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PeftError(f"no Ray cluster answers at {address}: {' '.join(str(error).split())}.") from error
    return True


def answers(address: str) -> None:
    """Asks the port for a sign of life, because Ray itself tries for minutes.

    Raises:
        PeftError: nobody answers there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise PeftError(f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`.") from error


def run_class(work: Work) -> type:
    """A Tune trainable whose one step is a whole job."""
    from ray.tune import Trainable

    class Run(Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch

            torch.set_num_threads(config["threads"])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True  # what is kept in this process is found again by its name

        def step(self) -> dict[str, Any]:
            job, out = self.config["job"], Path(self.config["out"])
            if not (out / CONFIG).is_file():
                where = os.uname().nodename
                outcome = Outcome(
                    error=f"{where} does not see the folder {out}: give --out a folder that all nodes share"
                )
            else:
                outcome = work(*job["parcel"])
            return {"outcome": dataclasses.asdict(outcome), "done": True}

    return Run


def callback_class() -> type:
    from ray.tune import Callback

    class Report(Callback):
        """Tells `done` of each trial's end."""

        def __init__(self, jobs: dict[str, Job], done: Done) -> None:
            self.jobs, self.done = jobs, done
            self.stopped: PeftError | None = None

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune keeps a copy on disk for a restart of its own, which a sweep does without it

        def end(self, trial: Any, outcome: Outcome) -> None:
            job = self.jobs.pop(trial.config["job"]["folder"], None)
            if job is None or self.stopped:
                return
            try:
                self.done(job, outcome)
            except PeftError as error:  # Tune would wrap it
                self.stopped = error

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self.end(trial, Outcome(**result["outcome"]))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            reason = " ".join(
                str(trial.error_file and Path(trial.error_file).read_text(encoding="utf-8")[-300:] or "unknown").split()
            )
            self.end(trial, Outcome(error=f"Ray lost its process ({reason})"))

    return Report
