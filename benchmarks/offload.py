"""Peak resident memory and time of a LoRA step with `--offload blocks`, beside the same step with all weights in memory.

python -m benchmarks.offload                 # a random SD3-shaped transformer of 2 B parameters in bfloat16, 4 GiB on disk
python -m benchmarks.offload --layers 4

The weights are written below the folder for temporary files and deleted at the end; each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from benchmarks.measuring import CPU, machine
from diffusion_peft.base.offload import mapped
from peft_core import adapt

SHAPE: dict[str, Any] = dict(
    sample_size=128, patch_size=2, in_channels=16, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192,
)  # fmt: skip


def write(folder: Path, layers: int) -> int:
    """A random transformer's folder, a tensor at a time; how many parameters it has."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(num_layers=layers, **SHAPE)
    config = {"_class_name": "SD3Transformer2DModel", "num_layers": layers} | SHAPE
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, offset = {}, 0
    for name, tensor in model.state_dict().items():
        header[name] = {
            "dtype": "BF16",
            "shape": [*tensor.shape],
            "data_offsets": [offset, offset + 2 * tensor.numel()],
        }
        offset += 2 * tensor.numel()
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    some = (
        (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02)
        .bfloat16()
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for about in header.values():
            left = about["data_offsets"][1] - about["data_offsets"][0]
            while left:
                left -= file.write(some[: min(left, len(some))])
    return offset // 2


def status(key: str) -> float:
    """MiB, as Linux says."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1024


def side(folder: Path, how: str) -> None:
    """Loads, adapts and takes two steps, the second of which is timed."""
    torch.set_num_threads(1)
    if how == "blocks":
        model = mapped(SD3Transformer2DModel, folder, torch.bfloat16)
    else:
        model = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    model.requires_grad_(False)
    torch.manual_seed(0)
    adapt(model, "lora", rank=16)
    model.enable_gradient_checkpointing()  # type: ignore[operator]
    model.train()
    before = status("VmRSS")
    chance = torch.Generator().manual_seed(1)
    x, words, pooled = (torch.randn(*s, generator=chance) for s in ((1, 16, 16, 16), (1, 77, 4096), (1, 2048)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    losses, began = [], 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            said = model(x, words.bfloat16(), pooled.bfloat16(), torch.full((1,), 500.0), return_dict=False)[0]
        loss = said.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    print(
        json.dumps(
            {"before": before, "peak": status("VmHWM"), "seconds": time.perf_counter() - began, "losses": losses}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--side", nargs=2, metavar=("FOLDER", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(Path(args.side[0]), args.side[1])
        return
    print(machine(CPU))
    with tempfile.TemporaryDirectory() as folder:
        count = write(Path(folder), args.layers)
        blocks = SD3Transformer2DModel(num_layers=2, **SHAPE).transformer_blocks  # the last one is smaller
        block = sum(p.numel() for p in blocks[0].parameters())
        print(
            f"{count / 1e9:.2f} B parameters, {2 * count / 2**20:,.0f} MiB; a block about {2 * block / 2**20:,.0f} MiB"
        )
        print("| weights | resident before a step | peak | seconds a step |\n|---|--:|--:|--:|")
        found = {}
        for how in ("memory", "blocks"):
            line = [sys.executable, "-m", "benchmarks.offload", "--side", folder, how]
            found[how] = one = json.loads(
                subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            print(f"| {how} | {one['before']:,.0f} MiB | {one['peak']:,.0f} MiB | {one['seconds']:.1f} |", flush=True)
        same = found["memory"]["losses"] == found["blocks"]["losses"]
        print(
            f"peak {found['blocks']['peak'] / found['memory']['peak']:.2f} of the other's; losses {'equal' if same else 'differ'}"
        )


if __name__ == "__main__":
    main()
