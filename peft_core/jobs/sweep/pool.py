"""Jobs (runs of a sweep, parcels of a search) in processes on this machine that take one after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from peft_core.jobs.sweep.outcome import Outcome

BYTES_EACH = 3 << 30
"""What a worker may need: libraries, a ViT-B and its activations at batch 64."""
Done = Callable[[Any, Outcome], None]
Work = Callable[..., Outcome]
Parcel = Callable[[Any, Path], tuple[Any, ...]]


def default_workers(workers: int, threads: int) -> tuple[int, int]:
    """Workers and threads of each: one worker a GPU; without one, a worker a processor as far as the memory reaches."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not workers:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else BYTES_EACH
        gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
        workers = gpus or max(1, min(cpus // max(1, threads), memory // BYTES_EACH))
    return workers, threads or max(1, cpus // workers)


class Worker:
    """A process, the end of its pipe, and the job it is at."""

    def __init__(self, number: int, threads: int, work: Work) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([work.__module__])  # imported once, for all workers
        self.number, (self.pipe, other) = number, context.Pipe()
        self.process = context.Process(target=serve, args=(other, threads, work, _gpu(number)), daemon=True)
        self.process.start()
        other.close()
        self.job: Any = None
        self.task = ""

    def start(self, job: Any, parcel: tuple[Any, ...]) -> None:
        self.job, self.task = job, job.task
        self.pipe.send(parcel)

    def outcome(self) -> Outcome:
        """Of the job, once the pipe has something to read: its end, too, where the process died."""
        self.job = None
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(10)
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            hint = ": is the memory too small for so many workers?" if code == -signal.SIGKILL else ""
            return Outcome(error=f"its process {how}{hint}")

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class Pool:
    """Up to `count` workers; they start when they are needed and live until `close`.

    Args:
        out: the sweep's folder.
        work: what a worker does with a job: a function of a module, which is imported once for all workers.
        parcel: (job, out) -> its arguments. A job has a `task`: what a worker keeps for the next job of the same one.
    """

    def __init__(self, count: int, threads: int, out: Path, work: Work, parcel: Parcel) -> None:
        self.count, self.threads, self.out, self.work, self.parcel = count, threads, out, work, parcel
        self.workers: dict[int, Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, jobs: Iterable[Any], done: Done) -> None:
        """Carries out all jobs, calling `done` as they end, in whatever order."""
        waiting = list(jobs)
        while waiting or any(worker.job for worker in self.workers.values()):
            for number in range(self.count):
                worker = self.workers.get(number)
                if waiting and (worker is None or worker.job is None):
                    worker = worker or self.workers.setdefault(number, Worker(number, self.threads, self.work))
                    others = {each.task for each in self.workers.values() if each.job}
                    job = waiting.pop(pick(waiting, worker.task, others))
                    worker.start(job, self.parcel(job, self.out))
            busy = {worker.pipe: worker for worker in self.workers.values() if worker.job}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                job = worker.job
                assert job is not None
                outcome = worker.outcome()
                if outcome.error and not worker.process.is_alive():
                    self.workers.pop(worker.number).stop()
                done(job, outcome)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        self.workers.clear()


def pick(waiting: Sequence[Any], task: str, others: set[str]) -> int:
    """The next job for a worker: of the data set that it holds, else of one that no other holds, else the first."""
    fitness = [(job.task != task, job.task in others) for job in waiting]
    return min(range(len(waiting)), key=lambda index: (fitness[index], index))


def serve(pipe: Connection, threads: int, work: Work, environment: dict[str, str]) -> None:
    """A worker's life: it ends with the process that started it, whatever ended that."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        try:
            parcel = pipe.recv()
        except (EOFError, ConnectionError):
            return
        pipe.send(work(*parcel))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _gpu(number: int) -> dict[str, Any]:
    """The one GPU that a worker sees: they are dealt out in turn."""
    count = torch.cuda.device_count()
    if not count:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[number % count]}
