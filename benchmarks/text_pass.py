"""One training step of the text tower on ImageNet's class names, ViT-B-16, learnt context before the name: what all 77
tokens cost, what truncation to the longest text costs, and what the packed pass costs.

FLOPs are counted for all 1,000 names; time, memory and differences are measured on some of them. On a CPU time is the
process's CPU time on one thread, which other programs on the machine do not change.

python -m benchmarks.text_pass                    # time and memory on 50 classes, about 2 minutes
python -m benchmarks.text_pass --classes 1000     # on all of them (12 TFLOP a step for the 77-token pass)
python -m benchmarks.text_pass --context 16 --device cuda
"""

import argparse
import logging
from collections.abc import Callable
from statistics import median
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import interleaved, machine, options, peak, write_ratios
from clip_peft.text.packing import pack
from clip_peft.text.prompts import Prompts, make_prompts
from clip_peft.text.run import TextPass
from clip_peft.text.tower import TextTower
from peft_core.counting import count_flops

PASSES = ("77 tokens", "truncated", "shared prefix, padded", "packed (ours)")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="ViT-B-16", help="of open_clip, with random weights")
    parser.add_argument("--context", type=int, nargs="*", default=[16, 4])
    parser.add_argument("--classes", type=int, default=50, help="for time and memory: every k-th of the 1,000 names")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger().setLevel(logging.ERROR)  # random weights do for this
    names = open_clip.IMAGENET_CLASSNAMES
    outline = open_clip.create_model(args.arch, device="meta").requires_grad_(False)
    model = open_clip.create_model(args.arch).requires_grad_(False).to(args.device)
    some = list(names)[:: max(1, len(names) // args.classes)][: args.classes]
    print(f"{args.arch}, float32, {machine(args.device)}")
    for context in args.context:
        print(f"\n{context} context tokens: forward and backward to the context")
        table(args, outline, model, list(names), some, context)


def table(
    args: argparse.Namespace, outline: nn.Module, model: nn.Module, names: list[str], some: list[str], context: int
) -> None:
    # FLOPs are counted on tensors without data, by the same code
    counts = {n: flops(outline, prompts_of(outline, chosen, context)) for n, chosen in ((len(names), names),
                                                                                        (len(some), some))}  # fmt: skip
    prompts = prompts_of(model, some, context)
    vectors = torch.randn(context, TextTower(model).width, generator=torch.Generator().manual_seed(0)) * 0.02
    vectors = vectors.to(args.device)
    runs = {name: step(model, prompts, vectors, name) for name in PASSES}
    results = {name: run() for name, run in runs.items()}
    times = interleaved(runs, args.repeats, args.device, of_process=torch.get_num_threads() == 1)
    peaks = {name: peak(run, args.device) for name, run in runs.items()}
    seconds_of = {name: median(values) for name, values in times.items()}
    print(f"| pass | GFLOP a class ({len(names)}) | fewer | fewer ({len(some)}) | s ({len(some)}) | faster | "
          "peak MiB | less | largest difference (features, gradient) |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    first = PASSES[0]
    for name in PASSES:
        differences = [
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(results[name], results[first], strict=True)
        ]
        print(
            f"| {name} | {counts[len(names)][name] / len(names) / 1e9:.3f} "
            f"| {counts[len(names)][first] / counts[len(names)][name]:.1f} "
            f"| {counts[len(some)][first] / counts[len(some)][name]:.1f} "
            f"| {seconds_of[name]:.2f} | {seconds_of[first] / seconds_of[name]:.1f} "
            f"| {peaks[name] / 2**20:.0f} | {peaks[first] / peaks[name]:.1f} "
            f"| {differences[0]:.0e}, {differences[1]:.0e} |"
        )
        write_ratios(args.ratios, f"text of {args.arch}, {context} context tokens, {len(some)} classes", name,
                     time=seconds_of[name] / seconds_of[first], peak=peaks[name] / peaks[first])  # fmt: skip
    ours = PASSES[-1]
    promise = counts[len(some)][first] / counts[len(some)][ours]
    time_ratio, memory_ratio = promise * seconds_of[ours] / seconds_of[first], promise * peaks[ours] / peaks[first]
    print(f"against what the FLOPs promise on these {len(some)} classes (1.00 = as promised): "
          f"time {time_ratio:.2f}, memory {memory_ratio:.2f}")  # fmt: skip


def prompts_of(model: nn.Module, names: list[str], context: int) -> Prompts:
    return make_prompts(TextTower(model), open_clip.SimpleTokenizer(), names, "{}.", context)


def step(model: nn.Module, prompts: Prompts, vectors: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """One forward and backward; gives the features and the context's gradient."""
    text_pass = TextPass(model, prompts, memory=1e15)
    if name == PASSES[2]:
        whole = slice(0, len(prompts))
        key = (whole.start, whole.stop, True, vectors.device)
        text_pass._packings[key] = pack(prompts, whole, True, vectors.device, padded=True)
    target = torch.randn(len(prompts), text_pass.tower.features, generator=torch.Generator().manual_seed(1))
    target = target.to(vectors.device)

    def run() -> tuple[Tensor, Tensor]:
        context = vectors.detach().requires_grad_()
        if name == PASSES[1]:
            features = truncated(text_pass.tower, prompts, context)
        else:
            features = text_pass(context, full_length=name == PASSES[0])
        (features * target).sum().backward()
        assert context.grad is not None
        return features.detach(), context.grad

    return run


def truncated(tower: TextTower, prompts: Prompts, context: Tensor) -> Tensor:
    """The stock blocks on all tokens up to the longest end of text."""
    length = int(prompts.pooled.max()) + 1
    root: Any = tower.root
    x = root.token_embedding(prompts.ids[:, :length].to(context.device))
    x = torch.cat((x[:, :1], context.expand(len(prompts), -1, -1), x[:, 1 + context.shape[0] :]), dim=1)
    x = x + root.positional_embedding[:length]
    x = root.transformer(x, attn_mask=root.attn_mask[:length, :length])
    return tower.project(x[torch.arange(len(prompts)), prompts.pooled])


def flops(outline: nn.Module, prompts: Prompts) -> dict[str, int]:
    vectors = torch.empty(prompts.context, TextTower(outline).width, device="meta")
    with sdpa_kernel(SDPBackend.MATH):
        return {name: count_flops(step(outline, prompts, vectors, name)) for name in PASSES}


if __name__ == "__main__":
    main()
