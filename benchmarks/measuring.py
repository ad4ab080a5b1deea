"""Where a benchmark runs, and how its figures are taken there: the device option, clocks, autocast, peak memory, the machine."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notes would stand in the tables

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

CPU = torch.device("cpu")
AMPERE = (8, 0)
"""The first capability with bf16 units."""


def options(about: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line: its docstring, and what all of them take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=usable, default=CPU, metavar="{cpu,cuda}", help="cpu where nothing is said")
    parser.add_argument("--ratios", type=Path, metavar="FILE", help="write the ratios there too, a JSON line a row")
    return parser


def pictures(model: nn.Module, batch: int, device: torch.device = CPU) -> Tensor:
    """Random pictures, B 3 H W, of the size that one of timm's ViTs takes."""
    return torch.randn(batch, 3, *cast("Any", model).patch_embed.img_size).to(device)


def wanted(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """The rows that `--only` asks for: those whose name holds a word, or is one; all without words."""
    names = list(names)
    return [n for n in names if not words or n in words or any(word in n for word in words if word not in names)]


def usable(name: str) -> torch.device:
    """The device of that name, if this machine has one."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"a benchmark runs on cpu or cuda, not on {name}.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this machine, or this build of torch, has no GPU: take --device cpu.")
    return torch.device(name)


def clock(device: torch.device, of_process: bool = False) -> Callable[[], float]:
    """Seconds now: on a GPU after all that was asked of it is done; on a CPU, `of_process`, the processor time that this
    process took, which other programs on the machine do not change."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device) or time.perf_counter()
    return time.process_time if of_process else time.perf_counter


def seconds(run: Callable[[], object], device: torch.device = CPU, of_process: bool = False) -> float:
    now = clock(device, of_process)
    start = now()
    run()
    return now() - start


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device = CPU, of_process: bool = False
) -> dict[str, list[float]]:
    """Seconds of every run in every round, taken in turns so that drift of the machine meets all alike (see `clock`)."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run, device, of_process))
    return taken


def ratios(taken: dict[str, list[float]], base: str) -> dict[str, float]:
    """Median over rounds of a run's time to the base's time in the same round."""
    return {
        name: statistics.median(t / b for t, b in zip(times, taken[base], strict=True)) for name, times in taken.items()
    }


def peak(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Largest sum of live allocations during a run, in bytes beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = largest = 0
    profiler: Any = recorded.profiler
    records = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for record in sorted(records, key=lambda record: record.start_ns()):
        live += record.nbytes()  # negative where memory is freed
        largest = max(largest, live)
    return largest


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def has_bf16(device: torch.device = CPU) -> bool:
    """Whether the device has bf16 units; without them bf16 is emulated, and its times say nothing."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--precision", choices=("float32", "bf16", "both"), default=default)


def precisions(args: argparse.Namespace) -> list[str]:
    """Those of `--precision` in which the device computes."""
    if args.precision == "float32" or has_bf16(args.device):
        return ["float32", "bf16"] if args.precision == "both" else [args.precision]
    print("bf16: this device has no bf16 units, left out")
    return [] if args.precision == "bf16" else ["float32"]


def machine(device: torch.device = CPU) -> str:
    """What the figures were taken on, in one line."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (capability {major}.{minor}), CUDA {torch.version.cuda}"
        return f"torch {torch.__version__}, {name}, float32 products: {torch.get_float32_matmul_precision()}"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def write_ratios(file: Path | None, part: str, row: str, **found: float) -> None:
    """Add a row to the file of `--ratios`, which benchmarks.ratio_table reads."""
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": part, "row": row.strip()} | found) + "\n")
