"""What a method adds beside a CLIP model: the method itself, and what learns (`Learner`)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, autocasts, mean_features
from clip_peft.text.prompts import checked_names, spoken
from clip_peft.text.state import state_of
from peft_core.adaptation import disabled
from peft_core.errors import PeftError
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class OpenVocabularyMethod(Method):
    """A method that works beside a CLIP model, on prompts and features, and not inside its modules."""

    grafts: ClassVar[bool] = False
    of_classes: ClassVar[str | None] = None
    """What of it belongs to the classes it was trained on; None where it works with any names."""
    customary: ClassVar[Mapping[str, str]] = {}
    """Data set -> the template that the method's authors publish for it, where it is not CoOp's (`TEMPLATES`)."""
    no_class_weights: ClassVar[str | None] = None
    """Why logits are no product of image features and class weights; None where they are."""
    of_pictures: ClassVar[bool] = False
    """Whether each picture is compared with texts of its own, so that there are no weights to run elsewhere."""
    tells_trained: ClassVar[bool] = False
    """Whether it names the classes that it was trained on, together, in another way than any others."""
    of_stream: ClassVar[bool] = False
    """Whether what it says of a picture depends on those that came before (`Learner.begin`)."""
    second_view: ClassVar[bool] = False
    """Whether training gives its loss two augmentations of each picture, images B 2 3 H W."""
    task: ClassVar[str] = "classify"
    """What the labels of its pictures are: a class, or `multi_label`, any number of them (labels B C of 1, 0 and −1 where nobody
    knows), each of the probability σ(logit)."""
    merges: ClassVar[bool] = False
    """Whether what it learns takes the place of a stock weight (`Learner.write_into`)."""
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Data set -> settings that the method's authors publish for it, where they are not the defaults."""
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = ()
    """Settings, and how many parameters train on ViT-B/16 with 1,000 classes of 16 pictures."""

    def for_data(self, data: str) -> Self:
        """The settings published for a data set (`oxford_pets` …), for those that stand at their defaults."""
        default, own = type(self)(), self.published.get(data, {})
        changes = {key: value for key, value in own.items() if getattr(self, key) == getattr(default, key)}
        return dataclasses.replace(self, **changes)

    def install(self, plan: Plan) -> None:
        raise PeftError(f'{self.name} is no graft: use clip_peft.OpenVocabulary(model, "{self.name}", class_names).')

    def inner(self) -> tuple[Method, ...]:
        """What is grafted into the model, beside what learns outside its modules; nothing for a model that stays as it is."""
        return ()

    def learner(self, clip: Clip, names: Sequence[str]) -> "Learner":
        """What learns, for these classes."""
        raise NotImplementedError(f"{type(self).__name__} must define learner(clip, names)")


def grafted(method: Method) -> tuple[Method, ...]:
    """What a method puts into the model: itself where it grafts, else its `inner` ones."""
    return method.inner() if isinstance(method, OpenVocabularyMethod) else (method,)


def stock(model: nn.Module) -> AbstractContextManager[Any]:
    """Within the block a model is the frozen one, whether it is adapted already or not."""
    return disabled(model) if "_peft_record" in model.__dict__ else nullcontext()


class OtherClasses(PeftError):
    """A method that has learnt its classes is asked for others."""


class Learner(nn.Module):
    """Parameters beside the model; image features (B E, not normalised) → logits B C.

    Only its own parameters are in its state dict. `names` can be changed unless the method's `of_classes` says otherwise.
    One that starts from the training pictures defines `remember(features, labels)`, with features K N E of K views of N pictures
    as `encode` gives them; it is called before training, and again before a run goes on.
    """

    encodes_as_model: ClassVar[bool] = False
    """Whether `encode`, where it is a learner's own, still gives what the model's image tower gives."""
    prepares_each_epoch: ClassVar[bool] = False
    """Whether `prepare` is called before every epoch."""
    projected: ClassVar[bool] = True
    """Whether image features are taken behind the image tower's projection; False takes its input."""
    of_regions: ClassVar[bool] = False
    """Whether image features are those of a picture's places, B R E (`clip_peft.regions`)."""

    def __init__(self, clip: Clip, method: OpenVocabularyMethod, names: Sequence[str]):
        super().__init__()
        self.clip = clip
        self.method: Any = method
        self.names = checked_names(names)
        self._kept: dict[str, tuple[Any, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def set_names(self, names: Sequence[str]) -> None:
        """Other classes from here on.

        Raises:
            PeftError: what was learnt belongs to the classes it was learnt on.
        """
        names = checked_names(names)
        if self.method.of_classes is not None and list(map(spoken, names)) != list(map(spoken, self.names)):
            raise OtherClasses(
                f"{self.method.name} cannot name other classes, because {self.method.of_classes}: train it on the new "
                "classes, or use a method that learns a prompt (coop, kgcoop, maple)."
            )
        before, self.names = self.names, names
        try:
            self.for_names()
        except PeftError:
            self.names = before
            raise
        self._kept = {}

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The classes that its tensors are of, which an adapter's card names."""
        return self.names

    def for_names(self) -> None:
        """Whatever must be made anew for other classes."""

    def from_format(self, tensors: dict[str, Tensor], format: int) -> dict[str, Tensor]:
        """The tensors of an adapter of that format as they are meant today.

        Raises:
            PeftError: they mean nothing today.
        """
        return tensors

    # ---- text side -------------------------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        """C E, of norm 1."""
        raise NotImplementedError(f"{type(self).__name__} must define class_features()")

    def text_parameters(self) -> list[nn.Parameter]:
        """Which of its own parameters the class features depend on."""
        return list(self.parameters())

    def weights(self) -> Tensor:
        """class_features(); where no gradient is asked it is kept as long as nothing that decides it has changed."""
        sources = [*self.text_parameters(), *self.clip.tower.trainable()]
        if torch.is_grad_enabled() and any(p.requires_grad for p in sources):
            return self.class_features()
        return self.remembered("weights", self.class_features, self.text_parameters())

    def remembered(self, what: str, make: Callable[[], Tensor], own: Iterable[Tensor] = ()) -> Tensor:
        """make() without gradient; what an earlier call gave where the text tower, the tensors `own`, the settings, the
        precision and the device are as they were then. Kept in one tuple, so that threads may share the learner."""
        tower = self.clip.tower
        kind = tower.device.type
        modules, tensors = tower.parts()
        state = None if tower.draws() else state_of(modules, [*tensors, *own])
        if state is None:
            return make()
        autocast = torch.get_autocast_dtype(kind) if autocasts(kind) else None
        state = (*state, autocast, self.training, self.method, self.names)
        kept = self._kept.get(what)
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[what] = kept = (state, make())
        return kept[1]

    # ---- image side ------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        return self.clip.image_features(images, self.projected, self.of_regions)

    def frozen_features(self, images: Tensor | None) -> Tensor:
        """B E, not normalised: what the model's image tower gives without what is learnt, for a loss to compare with.

        Raises:
            PeftError: there are no images, because features were cached.
        """
        if images is None:
            name = self.method.name
            raise PeftError(f"{name} compares with the frozen image features, so its loss needs the images.")
        with torch.no_grad():
            return self.clip.model.encode_image(images, normalize=False)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C from image features B E; `weights` are `weights()`, where they are at hand."""
        return self.clip.compare(features, self.weights() if weights is None else weights)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        """What training minimises; `images` are what `features` come from, None where features were cached."""
        return F.cross_entropy(self.logits(features), labels)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.encode(images))

    # ---- training and use ------------------------------------------------------------------------------------------

    def prepare(self, losses: Iterable[Tensor]) -> None:
        """Before an epoch: the losses of training batches, each computed, by `loss`, only when it is asked for."""

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        """Groups for an optimiser, with whatever else it takes; where none, all parameters that train, decay on matrices."""
        return ()

    def after_step(self, step: int) -> None:
        """Told after each optimiser step (from 1 on), without gradient recording; the step's gradients are still there."""

    def stages(self) -> tuple[float, ...]:
        """Shares of the steps, each of which begins its schedule of rates anew."""
        return (1.0,)

    def before_step(self, step: int, steps: int) -> None:
        """Told before each step (from 0 on) of how many."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Told after each epoch (from 1 on) of how many."""

    def choices(self, features: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Settings to choose from on labelled features B E, the present ones first, each with its logits B C; nothing where
        there is nothing to choose."""
        return iter(())

    def begin(self) -> None:
        """Forget the pictures that were named so far: a new stream of them begins."""

    def write_into(self, model: nn.Module) -> None:
        """Write what was learnt into the stock model's weights, where the method `merges`."""
        raise PeftError(f"{self.method.name} learns beside the model, whose weights stay the stock ones.")


class TemplateLearner(Learner):
    """Class features of hand-written texts, which none of its own parameters changes."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.for_names()

    def for_names(self) -> None:
        self.text_passes = self.clip.text_passes(self.names, self.method.template)

    def text_parameters(self) -> list[nn.Parameter]:
        return []

    def class_features(self) -> Tensor:
        return mean_features(self.text_passes)


class HeldNear(Learner):
    """Class features are held near those of hand-written texts, h: loss = CE + w · mean_c(1 − cos(t_c, h_c)), w the method's
    `weight`."""

    hand: Tensor

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        texts = self.weights()
        logits = self.clip.compare(features, texts)
        return F.cross_entropy(logits, labels) + self.method.weight * (1 - (texts * self.hand).sum(-1)).mean()
