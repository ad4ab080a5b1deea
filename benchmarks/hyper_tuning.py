"""What a hypermodel's start is worth on data sets that it never saw: accuracy from a few pictures of each class, at once and
after some steps, beside LoRA from its own start, with the same head of nearest class means and with a new one.

python -m benchmarks.hyper_tuning --source H --data world/flowers digits world/orientation
"""

import torch
import torch.nn.functional as F
from peft_data import open_data
from peft_data.augment import normalise
from peft_data.cache import decode
from torch import Tensor, nn

from benchmarks.measuring import options
from peft_core import adapt, lifecycle
from peft_core.lifecycle import Losses
from peft_core.methods.reparameterized.hyper_tuning import HyperTuning, places_of
from peft_core.parts.hypermodel import read_hypermodel
from vision_peft.backbones import load_backbone


def few(labels: Tensor, count: int, seed: int) -> Tensor:
    """The rows of `count` pictures of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:count] for c in labels.unique()])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--backbone", default="reference")
    parser.add_argument("--data", nargs="+", default=["world/flowers", "digits", "world/orientation"])
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tested", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    print(
        f"{args.shots} pictures a class, {args.steps} steps of AdamW at {args.lr:g}; % right of {args.tested} of test"
    )
    print("| data, seed | start | at once | after |\n|---|---|---|---|", flush=True)
    for name, seed in ((name, seed) for name in args.data for seed in range(args.seeds)):
        data = open_data(name)
        for start in ("LoRA, new head", "LoRA, class means", "predicted"):
            torch.manual_seed(seed)
            model, about = load_backbone(args.backbone, len(data.class_names))
            splits = [decode(part, about.input_size, crop_pct=about.crop_pct) for part in (data.train, data.test)]
            rows = few(splits[0].labels, args.shots, seed), torch.arange(len(data.test))[: args.tested]
            (x, labels), (asked, truth) = (
                (normalise(s.images[r], about.mean, about.std), s.labels[r]) for s, r in zip(splits, rows, strict=True)
            )
            at_once, after = learn(model, start, args, x, labels, asked, truth)
            print(f"| {name}, {seed} | {start} | {at_once:.1f} | {after:.1f} |", flush=True)


def learn(
    model: nn.Module, start: str, args, x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor
) -> tuple[float, float]:
    method = HyperTuning(source=None if start == "LoRA, new head" else args.source)
    adapt(model, method)

    def right() -> float:
        with torch.no_grad():
            return 100 * (model.eval()(asked).argmax(1) == truth).double().mean().item()

    if method.source is not None:
        lifecycle.prepare(
            model, Losses(lambda b: F.cross_entropy(model(b[0]), b[1]), [(x, labels)], labels=lambda b: b[1])
        )
    if start == "LoRA, class means":
        plain(model, method, args.source, x, labels)
    at_once, optimizer = right(), torch.optim.AdamW(lifecycle.parameter_groups(model, args.lr, 1e-4))
    for _ in range(args.steps):
        F.cross_entropy(model.train()(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return at_once, right()


@torch.no_grad()
def plain(model: nn.Module, method: HyperTuning, source: str, x: Tensor, labels: Tensor) -> None:
    """LoRA's own start, with a head of the frozen features' class means at the hypermodel's temperature."""
    for change in places_of(model, method).values():
        nn.init.kaiming_uniform_(change.A, a=5**0.5)
        change.B.zero_()
    timm: object = model
    features = timm.forward_head(timm.forward_features(x), pre_logits=True)  # type: ignore[attr-defined]
    weight, bias, classes = read_hypermodel(source).nearest_mean(features, labels)
    head: nn.Linear = model.head  # type: ignore[assignment]
    head.weight[classes], head.bias[classes] = weight, bias


if __name__ == "__main__":
    main()
