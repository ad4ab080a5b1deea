"""How fast the frames of a clip come out of its file: seeking to those that are wanted, against plain PyAV and torchcodec.

    python -m benchmarks.video_decode

Writes an H.264 file (340 × 256, 300 frames, a key frame every 12 or every 250) to a temporary folder, takes frames of it in
each way, in turns, in one thread; prints the medians of wanted frames a second of the processor's time. torchcodec is a row
where it is installed; with --device cuda it decodes on the GPU, the others stay on the CPU, and seconds are the clock's.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft_data.video.decoding import open_clip
from peft_data.video.sampling import Sampling
from peft_data.world_motion import write_mp4

from benchmarks.measuring import CPU, interleaved, machine, options, write_ratios
from benchmarks.measuring import ratios as ratios_of

WANTED = {
    "8 spread over the clip (uniform)": Sampling(8),
    "8 of a window of 128 (dense)": Sampling(8, "dense", 16),
    "16 of a window of 64 (dense)": Sampling(16, "dense", 4),
}


def tables(frames: int = 300, rounds: int = 9, device: torch.device = CPU, ratios: Path | None = None) -> None:
    """Prints a table for each distance of key frames."""
    ways = WAYS | ({"torchcodec": functools.partial(torchcodec, device=device)} if "torchcodec" in WAYS else {})
    unit = "second" if device.type == "cuda" else "CPU second"
    print(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        for keys in (12, 250):
            path = Path(folder) / f"{keys}.mp4"
            write_mp4(path, pictures(frames), rate=25, keys=keys)
            print(
                f"\n340 × 256, {frames} frames, a key frame every {keys}, {rounds} rounds, one thread: frames a {unit}"
            )
            print(f"| {'wanted':34} | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
            for name, sampling in WANTED.items():
                indices = sampling.test(frames)[0].tolist()
                check(path, indices)
                runs: dict[str, Callable[[], Any]] = {
                    way: lambda take=take, path=path, indices=indices: take(path, indices) for way, take in ways.items()
                }
                seconds = interleaved(runs, rounds, device, of_process=True)
                rates = " | ".join(f"{len(indices) / median(taken):,.0f}" for taken in seconds.values())
                print(f"| {name:34} | {rates} |", flush=True)
                for way, ratio in ratios_of(seconds, next(iter(ways))).items():
                    write_ratios(ratios, f"frames: {name}, key frame every {keys}", way, time=ratio)


def pictures(count: int) -> torch.Tensor:
    """Frames of coarse noise that drifts: as hard to encode as a handheld clip, N 3 256 340."""
    coarse = torch.rand(1, 3, 20, 40, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.interpolate(coarse, (256, 340 + count), mode="bicubic").clamp(0, 1)
    return torch.stack([(wide[0, :, :, t : t + 340] * 255).byte() for t in range(count)])


def seeking(path: Path, indices: list[int]) -> list[np.ndarray]:
    """This package."""
    with open_clip(path) as clip:
        return [np.asarray(image) for image in clip.read(indices)]


def plain(path: Path, indices: list[int], everything: bool = False) -> list[np.ndarray]:
    """PyAV's own loop: decodes from the start up to the last wanted frame, converts the wanted ones."""
    import av

    wanted, found = set(indices), {}
    with av.open(str(path)) as file:
        file.streams.video[0].codec_context.thread_count = 1
        for index, frame in enumerate(file.decode(video=0)):
            if everything or index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if index >= max(wanted):
                break
    return [found[index] for index in indices]


def plain_all(path: Path, indices: list[int]) -> list[np.ndarray]:
    """The same, with every frame on the way converted too, as code does that stacks them and picks afterwards."""
    return plain(path, indices, everything=True)


def torchcodec(path: Path, indices: list[int], device: torch.device = CPU) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, device=str(device))
    return list(decoder.get_frames_at(indices).data.cpu().numpy())


WAYS: dict[str, Callable[[Path, list[int]], list[np.ndarray]]] = {
    "seeking (this package)": seeking,
    "PyAV, from the start": plain,
    "PyAV, all converted": plain_all,
}
if importlib.util.find_spec("torchcodec"):
    WAYS["torchcodec"] = torchcodec


def check(path: Path, indices: list[int]) -> None:
    """Seeking gives the very frames that decoding all gives."""
    for one, other in zip(seeking(path, indices), plain(path, indices), strict=True):
        assert np.array_equal(one, other)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    tables(args.frames, args.rounds, args.device, args.ratios)


if __name__ == "__main__":
    main()
