"""What a method adds beside a CLIP model: the frozen model as methods see it (`Clip`), and what learns (`Learner`)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.text.prompts import Prompts, Tokenizer, checked_names, make_prompts, text_ids
from clip_peft.text.run import TextPass
from clip_peft.text.templates import templates
from clip_peft.text.tower import TextTower
from peft_core.errors import PeftError
from peft_core.method import Method, Plan


class FixedClasses(PeftError):
    """A method has learnt its classes, and can name no others."""


@dataclass(frozen=True, kw_only=True)
class OpenVocabularyMethod(Method):
    """A method that works beside a CLIP model, on prompts and features, and not inside its modules."""

    grafts: ClassVar[bool] = False
    of_classes: ClassVar[str | None] = None
    """What of it belongs to the classes it was trained on; None where it works with any names."""

    def install(self, plan: Plan) -> None:
        raise PeftError(f'{self.name} is no graft: use clip_peft.OpenVocabulary(model, "{self.name}", class_names).')

    def learner(self, clip: "Clip", names: Sequence[str]) -> "Learner":
        """What learns, for these classes."""
        raise NotImplementedError(f"{type(self).__name__} must define learner(clip, names)")


class Clip:
    """An open_clip model and its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, memory: float | None = None):
        self.model: Any = model
        self.tokenizer = tokenizer
        self.tower = TextTower(model)
        self.memory = memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clip":
        memo[id(self.tokenizer)] = self.tokenizer  # nobody changes it, and its tables are large
        memo[id(self)] = new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    @property
    def scale(self) -> Tensor:
        """exp of the logit scale."""
        return self.model.logit_scale.exp()

    def compare(self, features: Tensor, texts: Tensor) -> Tensor:
        """s · f̂ tᵀ, … B C, of image features … B E and texts … C E (see cosine)."""
        return self.scale * cosine(features, texts)

    def prompts(self, names: Sequence[str], template: str = "{}.", context: int = 0, position: str = "end") -> Prompts:
        return make_prompts(self.tower, self.tokenizer, names, template, context, position)

    def text_pass(self, prompts: Prompts) -> TextPass:
        return TextPass(self.model, prompts, self.memory)

    def text_passes(self, names: Sequence[str], template: str | Sequence[str]) -> list[TextPass]:
        """One a template (see clip_peft.text.templates)."""
        return [self.text_pass(self.prompts(names, one)) for one in templates(template)]

    def image_features(self, images: Tensor) -> Tensor:
        """B E, as the image tower gives them (not normalised); without graph where nothing of the tower trains."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.visual.parameters())
        with torch.set_grad_enabled(trains):
            return self.model.encode_image(images, normalize=False)

    def words(self, text: str) -> Tensor:
        """n D: the token embeddings of a text's own tokens, float32 copies."""
        ids = torch.tensor(text_ids(self.tokenizer, text), device=self.tower.device)
        return self.tower.embedding(ids).detach().float().clone()

    def random(self, *shape: int) -> Tensor:
        """float32 N(0, 0.02²) of (…, D)."""
        return torch.randn(*shape, self.tower.width, device=self.tower.device) * 0.02


def cosine(features: Tensor, texts: Tensor) -> Tensor:
    """f̂ tᵀ, … B C, of image features … B E, which are normalised here, and texts … C E of norm 1. In float32 under autocast
    too: bfloat16 would round logits of 30 to eighths."""
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return cosine(features.float(), texts.float())
    return F.normalize(features, dim=-1) @ texts.to(features.dtype).transpose(-1, -2)


def mean_features(passes: Sequence[TextPass]) -> Tensor:
    """C E, of norm 1: the mean over templates of each text's normalised feature."""
    features = [F.normalize(text_pass(), dim=-1) for text_pass in passes]
    return F.normalize(torch.stack(features).mean(0), dim=-1) if len(features) > 1 else features[0]


class Learner(nn.Module):
    """Parameters beside the model; image features (B E, not normalised) → logits B C.

    Only its own parameters are in its state dict. `names` can be changed unless the method's `of_classes` says otherwise.
    """

    def __init__(self, clip: Clip, method: OpenVocabularyMethod, names: Sequence[str]):
        super().__init__()
        self.clip = clip
        self.method: Any = method
        self.names = checked_names(names)
        self._cached: tuple[Any, Tensor] | None = None

    def set_names(self, names: Sequence[str]) -> None:
        """Other classes from here on.

        Raises:
            PeftError: what was learnt belongs to the classes it was learnt on.
        """
        names = checked_names(names)
        if names != self.names and self.method.of_classes is not None:
            raise FixedClasses(
                f"{self.method.name} cannot name other classes, because {self.method.of_classes}: train it on the new "
                "classes, or use a method that learns a prompt (coop, kgcoop, maple)."
            )
        self.names, self._cached = names, None
        self.for_names()

    def for_names(self) -> None:
        """Whatever must be made anew for other classes."""

    # ---- text side -------------------------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        """C E, of norm 1."""
        raise NotImplementedError(f"{type(self).__name__} must define class_features()")

    def text_parameters(self) -> list[nn.Parameter]:
        """Which of its own parameters the class features depend on."""
        return list(self.parameters())

    def weights(self) -> Tensor:
        """class_features(); remembered while no gradient is asked and nothing has changed."""
        sources = self.text_parameters() + self.clip.tower.trainable()
        if torch.is_grad_enabled() and any(p.requires_grad for p in sources):
            return self.class_features()
        kind = self.clip.tower.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (autocast, self.training, [(id(p), p.data_ptr(), p._version) for p in sources])
        if self._cached is None or self._cached[0] != key or self._cached[1].device != self.clip.tower.device:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (key, self.class_features())
        return self._cached[1]

    # ---- image side ------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        return self.clip.image_features(images)

    def logits(self, features: Tensor) -> Tensor:
        """B C from image features B E."""
        return self.clip.compare(features, self.weights())

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        """What training minimises; `images` are what `features` come from, None where features were cached."""
        return F.cross_entropy(self.logits(features), labels)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.encode(images))

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Told after each epoch (from 1 on) of how many."""


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


class ContextLearner(Learner):
    """Learnt context vectors in front of (or around) the class name, and what follows them in `template`."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], context: Tensor, template: str = "{}.",
                 position: str = "end", reference: str | Sequence[str] | None = None):  # fmt: skip
        super().__init__(clip, method, names)
        self.context = nn.Parameter(context)
        self.template, self.position, self.reference = template, position, reference
        self.hand: Tensor
        self.register_buffer("hand", None, persistent=False)
        self.for_names()

    def for_names(self) -> None:
        prompts = self.clip.prompts(self.names, self.template, self.context.shape[-2], self.position)
        self.text_pass = self.clip.text_pass(prompts)
        if self.reference is not None:
            with torch.no_grad():
                self.hand = mean_features(self.clip.text_passes(self.names, self.reference))

    def class_features(self) -> Tensor:
        return F.normalize(self.text_pass(self.context), dim=-1)


def start_context(clip: Clip, method: str, context: int, init: str | None) -> Tensor:
    """M D: the first `context` token embeddings of `init`, or N(0, 0.02²).

    Raises:
        PeftError: fewer than one token, or an `init` with fewer tokens than that.
    """
    if context < 1:
        raise PeftError(f"{method} got context {context}: it must be 1 or more.")
    if init is None:
        return clip.random(context)
    words = clip.words(init)
    if len(words) < context:
        raise PeftError(
            f'{method}: init "{init}" has {len(words)} tokens, fewer than context {context}: lower context or leave init out.'
        )
    return words[:context]
