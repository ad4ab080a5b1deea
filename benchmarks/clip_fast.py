"""Methods that train in seconds from cached features, and test-time methods beside TPT, encoding the views apart.

The first table is a whole run of `fit` on features that an earlier run left: seconds of its parts, CPU time of the process. The
second one is what naming a picture takes from its encoded views, rounds of all methods in turn, and their accuracy on pictures of
the reference CLIP's set.

python -m benchmarks.clip_fast                            # world/open/objects, 16 shots; ViT-B-16's text tower
python -m benchmarks.clip_fast --runs gda --classes 10 --model reference --pictures 96
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
from typing import Any

import open_clip
import torch

from benchmarks.measuring import clock, machine, options, write_ratios
from clip_peft import OpenVocabulary
from clip_peft.fit import fit

TEST_TIME = ("tpt", "mta", "zero", "tda", "tps")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--data", default="world/open/objects")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", nargs="*", default=["gda", "ape", "clap", "lp_plus_plus", "prolip"])
    parser.add_argument(
        "--model", default="ViT-B-16", help="of the second table: an architecture (random weights), `reference`"
    )
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pictures", type=int, default=0, help="runs of the test-time methods on a set, so many views each"
    )
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # random weights do for this
    torch.set_num_threads(1)
    print(machine(args.device))
    with tempfile.TemporaryDirectory() as folder:
        if args.runs:
            print(f"\n{args.backbone}, {args.data}, {args.shots} shots, base classes, features cached before\n"
                  "| method | base | zero-shot | chosen on left-out ones | features, s | training, s | whole run, s |\n"
                  "|---|---|---|---|---|---|---|")  # fmt: skip
        for method in args.runs:
            run(args, method, folder, "warm")
            results, seconds = run(args, method, folder, "timed")
            apart = None
            if results["chosen"]:
                apart = 100 * run(args, method, folder, "left", choose_on="train")[0]["accuracy"]
            print(f"| {method} | {100 * results['accuracy']:.1f} | {100 * results['zero_shot_accuracy']:.1f} "
                  f"| {'–' if apart is None else format(apart, '.1f')} | {results['seconds']['features']:.2f} "
                  f"| {results['seconds']['train']:.2f} | {seconds:.1f} |", flush=True)  # fmt: skip
        if args.pictures:
            print(f"\naccuracy of whole runs, {args.pictures} views\n| method | accuracy | zero-shot |\n|---|---|---|")
        for method in TEST_TIME if args.pictures else ():
            more = {"method": {"name": method} | ({} if method == "tda" else {"views": args.pictures})}
            results, _ = run(args, method, folder, "views", **more)
            print(
                f"| {method} | {100 * results['accuracy']:.1f} | {100 * results['zero_shot_accuracy']:.1f} |",
                flush=True,
            )
    pictures(args)


def run(args: argparse.Namespace, method: str, folder: str, name: str, **more: Any) -> tuple[dict[str, Any], float]:
    """A run's results, and its CPU seconds (with a GPU the clock's)."""
    trainer = {"accelerator": "gpu" if args.device.type == "cuda" else "cpu"}
    settings: dict[str, Any] = {"data": {"name": args.data, "cache_dir": f"{folder}/cache"}, "backbone": args.backbone}
    settings |= {"method": method, "shots": args.shots, "classes": "base", "seed": args.seed, "trainer": trainer}
    now = clock(args.device, of_process=True)
    began = now()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        results = fit(**(settings | {"out": f"{folder}/{method}-{name}"} | more))
    return results, now() - began


def pictures(args: argparse.Namespace) -> None:
    """Milliseconds a picture of each method, from encoded views."""
    from peft_core.jobs.hub.open_clip_models import load_backbone

    if args.model == "reference":
        model, tokenizer, _ = load_backbone("reference")
    else:
        model, tokenizer = open_clip.create_model(args.model), None
    model = model.to(args.device).eval()
    names = open_clip.IMAGENET_CLASSNAMES[: args.classes]
    now, times = clock(args.device), {method: [] for method in TEST_TIME}
    learners = {}
    for method in TEST_TIME:
        views = 1 if method == "tda" else args.views
        learners[method] = OpenVocabulary(model, method, names, tokenizer, views=views).eval().learner
    torch.manual_seed(0)
    features = torch.randn(4, args.views, learners["tpt"].clip.tower.features, device=args.device)
    for turn in range(args.rounds + 1):  # the first one is for first calls
        for method, learner in learners.items():
            own = features[:, :1] if method == "tda" else features
            with torch.no_grad():
                began = now()
                learner.logits(own)
                times[method] += [(now() - began) / len(features)] if turn else []
    middle = {method: statistics.median(each) for method, each in times.items()}
    print(f"\n{args.model}, {len(names)} classes, {args.views} views (tda 1), views encoded before\n"
          "| method | ms a picture | tpt takes |\n|---|---|---|")  # fmt: skip
    for method, each in middle.items():
        print(f"| {method} | {1000 * each:.2f} | {middle['tpt'] / each:.0f} × |")
        write_ratios(args.ratios, f"{method}, a picture", "tpt", time=each / middle["tpt"])


if __name__ == "__main__":
    main()
