"""Seconds of an epoch of CoOp, KgCoOp, MaPLe and CLIP-LoRA, and the same methods as their published code runs them: the image
tower at each step, all 77 tokens of every class.

Steps of both kinds are taken in turn. On a CPU the time is the process's CPU time on one thread, which other programs on the
machine do not change. Cached features cost one pass of the image tower a view, which is in the last column's whole run.

python -m benchmarks.clip_epoch                         # ViT-B-16, random weights, 50 classes of ImageNet, 16 shots
python -m benchmarks.clip_epoch --model reference --classes 32 --steps 20
python -m benchmarks.clip_epoch --device cuda --classes 500 --steps 10
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable
from typing import Any

import open_clip
import torch

from benchmarks.measuring import autocast, machine, options, seconds, write_ratios
from clip_peft import OpenVocabulary
from clip_peft.text.run import TextPass
from clip_peft.training.features import Encoder, frozen_image_tower

# Method: batch and epochs of its recipe.
METHODS = {"coop": (32, 200), "kgcoop": (128, 100), "maple": (4, 5), "clip_lora": (32, 250)}


class FullLength(TextPass):
    """The model's own forward with all tokens."""

    def __call__(self, context: Any = None, deep: Any = (), *, full_length: bool = True) -> torch.Tensor:
        return super().__call__(context, deep, full_length=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="ViT-B-16", help="an architecture (random weights) or `reference`")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # random weights do for this
    torch.set_num_threads(1)
    names = list(open_clip.IMAGENET_CLASSNAMES)
    names = names[:: max(1, len(names) // args.classes)][: args.classes]
    pictures = args.shots * len(names)
    print(f"{args.model}, {len(names)} classes, {args.shots} shots, {'bf16' if args.bf16 else 'float32'}, "
          f"{args.steps} steps of each, {machine(args.device)}")  # fmt: skip
    print("| method | batch | s/epoch, 77 tokens | s/epoch, ours | faster | features once, s | whole run faster |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for method in args.only:
        batch, epochs = METHODS[method]
        batch = min(batch, pictures)
        ours, plain = (made(args.model, method, names, args.device) for _ in range(2))
        for each in plain.learner.modules():
            for text_pass in [getattr(each, "text_pass", None), *getattr(each, "text_passes", ())]:
                if text_pass is not None:
                    text_pass.__class__ = FullLength
        frozen = frozen_image_tower(ours)
        visual: Any = ours.model.visual
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        images = torch.randn(batch, 3, height, width, device=args.device)
        labels = torch.arange(batch, device=args.device) % len(names)
        once = 0.0
        if frozen:
            encoder = Encoder(ours, (0.5,) * 3, (0.5,) * 3)
            some = torch.randint(0, 256, (min(8, batch), 3, height, width), dtype=torch.uint8)
            of_some = seconds(lambda e=encoder, s=some: e.encode(s), args.device, of_process=True)
            once = of_some / len(some) * pictures * args.views
        width = ours.learner.clip.tower.features
        features = torch.randn(batch, width, device=args.device) if frozen else None
        runs = {"plain": step(plain, images, labels, None, args), "ours": step(ours, images, labels, features, args)}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.steps + 1):
            for name, run in runs.items():
                value = seconds(run, args.device, of_process=True)
                if number or args.steps == 1:  # the first is the warm-up, where there are others
                    taken[name] = [value] if args.steps == 1 else [*taken[name], value]
        steps = math.ceil(pictures / batch)
        plain_epoch, our_epoch = (statistics.median(taken[name]) * steps for name in ("plain", "ours"))
        whole = plain_epoch * epochs / (our_epoch * epochs + once)
        print(f"| {method} | {batch} | {plain_epoch:.2f} | {our_epoch:.2f} | {plain_epoch / our_epoch:.1f} × | "
              f"{once:.1f} | {whole:.1f} × ({epochs} epochs) |", flush=True)  # fmt: skip
        write_ratios(args.ratios, f"epoch of {args.model}, {len(names)} classes, to 77 tokens", method,
                     time=our_epoch / plain_epoch)  # fmt: skip


def made(model: str, method: str, names: list[str], device: torch.device) -> OpenVocabulary:
    torch.manual_seed(0)
    if model == "reference":
        from clip_peft import reference

        return OpenVocabulary(reference.load(), method, names, reference.tokenizer()).to(device).train()
    return OpenVocabulary(open_clip.create_model(model), method, names).to(device).train()


def step(
    whole: OpenVocabulary, images: torch.Tensor, labels: torch.Tensor, features: Any, args: Any
) -> Callable[[], None]:
    def run() -> None:
        with autocast(args.device, args.bf16):
            loss = whole.loss(images, labels) if features is None else whole.learner.loss(features, labels, None)
        loss.backward()

    return run


if __name__ == "__main__":
    main()
