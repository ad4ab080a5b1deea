"""What test-time methods name right beside TPT, on the same pictures and the same views, and what a picture takes.

Of each of the chosen sets the first test pictures of every class; all methods see the same views, encoded once (`tda` the picture
alone, in one drawn order). Accuracy a set, over all the difference to TPT with its paired standard error, and CPU milliseconds a
picture from its encoded views.

python -m benchmarks.test_time                     # the reference CLIP on world/open/objects and things, 16 pictures a class
"""

from __future__ import annotations

import torch

from benchmarks.measuring import clock, machine, options
from clip_peft import OpenVocabulary
from clip_peft.training.evaluate import test_augment
from clip_peft.training.features import Encoder
from peft_core.jobs.data import Data
from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit

METHODS = ("zero_shot", "tpt", "mta", "zero", "tda", "tps")
ALONE = ("zero_shot", "tda")
"""Methods that take the picture without further views."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--data", nargs="+", default=["world/open/objects", "world/open/things"])
    parser.add_argument("--pictures", type=int, default=16, help="of each class")
    parser.add_argument("--views", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(args.device))
    model, tokenizer, about = load_backbone(args.backbone)
    model, fit, now = model.to(args.device), picture_fit(model, about), clock(args.device)
    right: dict[str, list[torch.Tensor]] = {method: [] for method in METHODS}
    took: dict[str, float] = {method: 0.0 for method in METHODS}
    for name in args.data:
        source = Data(name, {})
        data = source.open()
        labels = data.test.labels
        rows = [int(r) for c in range(len(data.class_names)) for r in (labels == c).nonzero()[: args.pictures, 0]]
        first = OpenVocabulary(model, "mta", data.class_names, tokenizer, views=args.views)
        decoded = source.decode(data.test.subset(rows), fit.size, test_augment(first.method), **fit.how)
        encoder = Encoder(first, about.mean, about.std)
        views = torch.stack(encoder.views(decoded, [None, *range(1, args.views)], "crop_flip"), 1).to(args.device)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        for method in METHODS:
            settings = {} if method in ALONE else {"views": args.views}
            named = OpenVocabulary(model, method, data.class_names, tokenizer, **settings).eval()
            named.learner.begin()
            began, found = now(), []
            with torch.no_grad():
                for chosen in order.split(64 if method in ALONE else 4):
                    logits = named.logits(views[chosen, 0] if method in ALONE else views[chosen])
                    found.append(logits.argmax(-1).cpu() == decoded.labels[chosen])
            took[method] += now() - began
            right[method].append(torch.cat(found).float())
    print(f"\n| {args.pictures} pictures a class, {args.views} views | {' | '.join(args.data)} | all, minus tpt | ms |")
    print("|---|" + "---:|" * (len(args.data) + 2))
    for method, parts in right.items():
        apart = torch.cat(parts) - torch.cat(right["tpt"])
        each = " | ".join(f"{100 * part.mean():.1f}" for part in parts)
        error = 100 * apart.std() / len(apart) ** 0.5
        ms = 1000 * took[method] / len(apart)
        print(f"| {method} | {each} | {100 * apart.mean():+.1f} ± {error:.1f} | {ms:.1f} |")


if __name__ == "__main__":
    main()
