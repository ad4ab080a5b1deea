"""`vision_peft hyper_tuning`: a network that predicts LoRA from a few pictures, trained on tasks drawn from data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft_data.augment import normalise
from peft_data.base import ClassificationData, Pictures
from peft_data.chance import generator_of
from peft_data.video.clips import Clips
from torch import Tensor, nn
from torch.func import functional_call

from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.runs.process import tell
from peft_core.methods.reparameterized.hyper_tuning import HyperTuning, places_of
from peft_core.parts.hypermodel import Factors, Hypermodel
from peft_core.values import Count, NotNegative, Positive, Seed, Whole


class Task(NamedTuple):
    """Pictures to learn from and others to be told, with classes from 0."""

    shown: Tensor
    named: Tensor
    asked: Tensor
    truth: Tensor


class Tasks:
    """Tasks drawn from data sets: one of them, some of its classes, some pictures of each; a function of seed and step.

    Args:
        sets: pictures, uint8 N 3 H W, and their classes.
        ways, shots, queries: the most classes; pictures of each to learn from, and to be told.
    """

    def __init__(self, sets: Sequence[tuple[Tensor, Tensor]], ways: int, shots: int, queries: int, seed: int) -> None:
        self.ways, self.shots, self.queries, self.seed = ways, shots, queries, seed
        each = [[(labels == c).nonzero().flatten() for c in labels.unique()] for _, labels in sets]
        enough = [[rows for rows in classes if len(rows) >= shots + queries] for classes in each]
        self.sets = [(s[0], classes) for s, classes in zip(sets, enough, strict=True) if len(classes) > 1]

    def __len__(self) -> int:
        return len(self.sets)

    def draw(self, step: int) -> Task:
        chance = generator_of(self.seed, step)
        pictures, classes = self.sets[int(torch.randint(len(self.sets), (), generator=chance))]
        shown, asked = [], []
        for number in torch.randperm(len(classes), generator=chance)[: self.ways].tolist():
            rows = classes[number]
            rows = rows[torch.randperm(len(rows), generator=chance)[: self.shots + self.queries]]
            shown.append(pictures[rows[: self.shots]])
            asked.append(pictures[rows[self.shots :]])
        truth = [torch.arange(len(shown)).repeat_interleave(n) for n in (self.shots, self.queries)]
        return Task(torch.cat(shown), truth[0], torch.cat(asked), truth[1])


class Predicting:
    """A frozen model of features under the changes that a hypermodel predicts."""

    def __init__(self, model: nn.Module, method: HyperTuning, read: Callable[[Tensor], Tensor], **shape: Any) -> None:
        self.model, self.read = model.eval().requires_grad_(False), read
        keys = {id(parameter): key for key, parameter in model.named_parameters()}
        changes = places_of(model, method)
        self.keys = {name: (keys[id(change.A)], keys[id(change.B)]) for name, change in changes.items()}
        places = {name: (len(change.B), change.A.shape[1]) for name, change in changes.items()}
        some: Any = next(iter(changes.values())).A
        self.hypermodel = Hypermodel(places, **shape).to(some.device)

    def features(self, pictures: Tensor, factors: Factors | None = None) -> Tensor:
        x = self.read(pictures)
        if factors is None:
            return self.model(x).float()
        given = {
            key: tensor for name, keys in self.keys.items() for key, tensor in zip(keys, factors[name], strict=True)
        }
        return functional_call(self.model, given, (x,)).float()

    def logits(self, task: Task, before: bool = False) -> Tensor:
        """What is nearest for the pictures asked; with `before` on the frozen model."""
        with torch.no_grad():
            frozen = self.features(task.shown)
        named = task.named.to(frozen.device)
        factors = None if before else self.hypermodel(frozen, named)
        features = self.features(torch.cat((task.shown, task.asked)), factors)
        weight, bias, _ = self.hypermodel.nearest_mean(features[: len(named)], named)
        return F.linear(features[len(named) :], weight, bias)

    @torch.no_grad()
    def accuracy(self, tasks: Tasks, count: int, before: bool) -> float:
        found = [self.logits(task, before).argmax(-1).cpu() == task.truth for task in map(tasks.draw, range(count))]
        return torch.cat(found).double().mean().item()


@command("vision")
def hyper_tuning(
    *, data: Data, out: str, backbone: str = "reference", targets: Sequence[str] | None = None,
    blocks: Sequence[Whole] | None = None, rank: Count = 1, steps: Count = 2000, lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.01, ways: Count = 10, shots: Count = 5, queries: Count = 5, width: Count = 128,
    layers: Count = 2, turns: Count = 2, scored: Count = 100, seed: Seed = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a hypermodel, which predicts LoRA and a head from a few pictures, on tasks drawn from data sets.

    A task is some classes of one data set, with pictures to predict from and others whose loss trains (HyperTuning, with what is
    predicted as in HyperDreamBooth). Then: fit --method hyper_tuning --method.source OUT.

    Args:
        data: One data set, or several/a+b+c; tasks come from train, and are scored on val where there is one.
        out: The folder of the hypermodel.
        backbone: As for fit.
        targets: Roles that get LoRA, the method's default where None.
        blocks: As for the method.
        rank: Of what is predicted.
        steps: Tasks, one a step.
        lr: Of AdamW, falling along a cosine, after a twentieth of warm-up.
        weight_decay: Of its matrices.
        ways: The most classes of a task.
        shots: Pictures of each class to predict from.
        queries: Pictures of each class that train.
        width: Of the hypermodel.
        layers: Of its decoder.
        turns: How often it looks at its own prediction.
        scored: Tasks of the figures at the end.
        seed: Of everything that is drawn.
    """
    from peft_core import adapt
    from peft_core.jobs.hub.reach import absolute
    from peft_core.jobs.runs.optimising import rate_at
    from peft_core.lifecycle import parameter_groups
    from vision_peft.backbones import load_backbone
    from vision_peft.derived import free_folder

    folder, opened = free_folder(out), data.open()
    if opened.task not in ("classify", "several"):
        raise PeftError(f"hyper_tuning draws tasks of classes, and {opened.name} is of {opened.task}: give another.")
    if isinstance(opened.train, Clips):
        raise PeftError(f"{opened.name} holds clips, and hyper_tuning draws tasks of pictures: give another.")
    torch.manual_seed(seed)
    model, about = load_backbone(backbone, 0)
    method = HyperTuning(rank=rank, targets=targets, blocks=blocks)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapt(model.to(device), method, train_head=False)

    def tasks(split: Pictures, number: int) -> Tasks:
        decoded = data.decode(split, about.input_size) if len(split) else None
        parts = [] if decoded is None else list(by_set(opened, decoded.images, decoded.labels))
        return Tasks(parts, ways, shots, queries, seed + number)

    def read(pictures: Tensor) -> Tensor:
        return normalise(pictures.to(device), about.mean, about.std)

    train, val = tasks(opened.train, 0), tasks(opened.val, 1)
    if not len(train):
        raise PeftError(
            f"no data set here has two classes of {shots + queries} pictures each: give more, or lower --shots and --queries."
        )
    width_of = model(read(torch.zeros(1, 3, *about.input_size, dtype=torch.uint8))).shape[-1]
    predicting = Predicting(
        model, method, read, features=width_of, rank=rank, width=width, layers=layers, turns=turns, seed=seed
    )
    groups = parameter_groups(predicting.hypermodel, lr, weight_decay)
    optimizer = torch.optim.AdamW(groups)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, warm, steps))
    mean_loss = 0.0
    for step in range(steps):
        task = train.draw(step)
        loss = F.cross_entropy(predicting.logits(task), task.truth.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(predicting.hypermodel.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean_loss += (loss.item() - mean_loss) / (step % max(1, steps // 10) + 1)
        if (step + 1) % max(1, steps // 10) == 0:
            tell(f"task {step + 1}/{steps}  mean loss {mean_loss:.3f}")
            mean_loss = 0.0
    used, name = (val, "val") if len(val) else (train, "train")
    accuracy = {
        word: predicting.accuracy(used, scored, before) for word, before in (("frozen", True), ("predicted", False))
    }
    predicting.hypermodel.write(
        folder, backbone=absolute(backbone), data=data.absolute().plain(), accuracy=accuracy, evaluated_on=name
    )
    print(f"{folder}: of {scored} tasks of {name}, nearest class mean of the frozen model {100 * accuracy['frozen']:.1f} %, "
          f"with what is predicted {100 * accuracy['predicted']:.1f} %")  # fmt: skip
    return {"accuracy": accuracy, "evaluated_on": name}


def by_set(data: ClassificationData, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures and classes of each data set of several; of one, all of them."""
    start = 0
    for _, count in getattr(data, "parts", ((data.name, len(data.class_names)),)):
        own = (labels >= start) & (labels < start + count)
        yield images[own], labels[own] - start
        start += count
