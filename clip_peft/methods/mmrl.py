import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.inside import Change, changed
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.image_prompts import ImageTower
from clip_peft.text.templates import DEFAULT
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.values import Count, NotNegative, Share


@dataclass(frozen=True, kw_only=True)
class MMRL(OpenVocabularyMethod):
    """MMRL: one set of tokens R (K, r), projected into the upper blocks of both towers, which give a second image feature.

    Guo & Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025; yunncheng/MMRL. Before block l =
    first … last (from 1) the tokens A_l R + a_l stand behind the class token of the image, B_l R + b_l behind the start of the
    text, in place of what became of those before. f is the class token's feature; g = P mean(ln_post(tokens)), P (E, V) trains
    and starts at N(0, 1/V). Loss = α CE(s f̂·t̂) + (1 − α) CE(s ĝ·t̂) + λ (1 − cos(f, f_0)) + λ (1 − cos(t, t_0)), means
    over pictures and classes, f_0 and t_0 the stock model's. The classes that were trained on are named by α f̂·t̂ + (1 − α) ĝ·t̂,
    any others by f̂·t̂. R ~ N(0, 0.02²); the A of all blocks start alike, and the B. 4,992,256 parameters on ViT-B-16. Frozen
    features need the pictures: a cache of image features does not do.

    With `rank` it is MMRL++ (Guo & Gu, "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for
    Vision-Language Models", IJCV 2026; preset mmrl_plus): A_l = A + U_l V_l with one A and U_l (V, k), V_l (k, r) of rank k, so
    B_l; P = the model's projection + U V of rank `project_rank`; and tokens take β of the place of those before. V_l and V
    start at 0.

    Args:
        tokens: K.
        width: r; 2048 on eurosat there.
        first, last: the blocks; each tower has them as far as it has blocks.
        share: α.
        weight: λ, between 0.01 and 7 there by data set.
        template: of the class texts, one.
        rank: k; None for a projection of its own a block, and P of its own.
        project_rank: of P's change, where there is a rank.
        mix: β.
    """

    tokens: Count = 5
    width: Count = 512
    first: Count = 6
    last: Count = 12
    share: Share = 0.7
    weight: NotNegative = 1.0
    template: str = DEFAULT
    rank: Count | None = None
    project_rank: Count = 64
    mix: Share = 1.0
    suits: ClassVar[tuple[str, ...]] = ("open_clip",)
    tells_trained: ClassVar[bool] = True
    no_class_weights: ClassVar[str | None] = "it compares texts with two features of each picture"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "stanford_cars": {"weight": 7.0}, "fgvc_aircraft": {"weight": 6.0}, "sun397": {"weight": 6.0}, "dtd": {"weight": 6.0},
        "food101": {"weight": 5.0}, "oxford_flowers": {"weight": 4.0}, "ucf101": {"weight": 3.0}, "imagenet": {"weight": 0.5},
        "caltech101": {"weight": 0.5}, "oxford_pets": {"weight": 0.2}, "eurosat": {"weight": 0.01, "width": 2048},
    }  # fmt: skip
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 4_992_256),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (
            cls(tokens=2, width=8, first=2, last=3),
            cls(tokens=2, width=8, first=2, last=3, rank=2, project_rank=4, mix=0.6),
        )

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _MMRL(clip, self, names)


class _MMRL(TemplateLearner):
    to_text: nn.ModuleList
    to_image: nn.ModuleList

    def __init__(self, clip: Clip, method: MMRL, names: Sequence[str]):
        visual = clip.model.visual
        if (
            clip.tower.full_length_because()
            or getattr(visual, "pool_type", None) != "tok"
            or not hasattr(visual, "ln_post")
        ):
            raise PeftError(
                f"{method.name} needs open_clip's own towers, a causal one of texts and a ViT with a class token: choose another "
                "CLIP model."
            )
        super().__init__(clip, method, names)
        self.trained = self.names
        self.image_tower, device = ImageTower(visual, method.name), clip.tower.device
        depths = {"text": len(clip.tower.blocks), "image": len(self.image_tower.blocks)}
        if min(depths.values()) < method.first:
            raise PeftError(
                f"{method.name} got first {method.first}: the towers have {min(depths.values())} blocks or more."
            )
        self.rows = torch.nn.Parameter(torch.randn(method.tokens, method.width, device=device) * 0.02)
        widths = {"text": clip.tower.width, "image": self.image_tower.width}
        for tower, width in widths.items():
            first = nn.Linear(method.width, width, device=device)
            count = min(method.last, depths[tower]) - method.first + 1
            own = [copy.deepcopy(first) for _ in range(count)]
            setattr(
                self, f"to_{tower}", nn.ModuleList(own) if method.rank is None else _Shared(first, count, method.rank)
            )
        if method.rank is None:
            self.project = nn.Parameter(torch.randn(*visual.proj.shape, device=device) * visual.proj.shape[0] ** -0.5)
        else:
            rows, columns = visual.proj.shape
            self.up, self.down = _factors(rows, columns, method.project_rank, device)

    @property
    def kept_names(self) -> tuple[str, ...]:
        return self.trained

    def at(self, projections: Any) -> dict[int, Tensor]:
        """Block -> the tokens that join before it."""
        shared = isinstance(projections, _Shared)
        made = projections(self.rows) if shared else [project(self.rows) for project in projections]
        return dict(enumerate(made, start=self.method.first - 1))

    def projection(self) -> Tensor:
        """P, V E."""
        return self.project if self.method.rank is None else self.clip.model.visual.proj + self.up @ self.down

    def text_parameters(self) -> list[nn.Parameter]:
        return [self.rows, *self.to_text.parameters()]

    def class_features(self) -> Tensor:
        (text_pass,) = self.text_passes
        return F.normalize(text_pass(inserted=self.at(self.to_text), mix=self.method.mix), dim=-1)

    @property
    def hand(self) -> Tensor:
        """C E, of norm 1: the stock model's class features."""
        return self.remembered("hand", super().class_features)

    def encode(self, images: Tensor) -> Tensor:
        """B 2E: the class token's feature and the tokens' own."""
        tokens, count, own = self.at(self.to_image), self.method.tokens, []

        def put(x: Tensor, new: Tensor, behind: int) -> Tensor:
            new = new.to(x.dtype).expand(x.shape[0], -1, -1)
            new = (
                self.method.mix * new + (1 - self.method.mix) * x[:, 1:behind]
                if behind > 1 and self.method.mix != 1
                else new
            )
            return torch.cat((x[:, :1], new, x[:, behind:]), dim=1)

        def take(y: Tensor) -> Tensor:
            own.append(y[:, 1 : 1 + count])
            return torch.cat((y[:, :1], y[:, 1 + count :]), dim=1)

        blocks, first = self.image_tower.blocks, min(tokens)
        receives: dict[nn.Module, Change] = {
            blocks[at]: lambda x, at=at, new=new: put(x, new, 1 if at == first else 1 + count)
            for at, new in tokens.items()
        }
        with changed(receives, {blocks[-1]: take}):
            features = self.clip.model.encode_image(images, normalize=False)
        mean = self.clip.model.visual.ln_post(own[-1]).mean(dim=1)
        return torch.cat((features, mean @ self.projection().to(mean.dtype)), dim=-1)

    def apart(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both features."""
        first, second = features.chunk(2, dim=-1)
        return self.clip.compare(first, weights), self.clip.compare(second, weights)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        of_class, of_tokens = self.apart(features, self.weights() if weights is None else weights)
        share = self.method.share
        return share * of_class + (1 - share) * of_tokens if self.names == self.trained else of_class

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        frozen = self.frozen_features(images)
        texts, share = self.weights(), self.method.share
        of_class, of_tokens = (F.cross_entropy(logits, labels) for logits in self.apart(features, texts))
        far = 2 - F.cosine_similarity(features.chunk(2, dim=-1)[0], frozen).mean() - (texts * self.hand).sum(-1).mean()
        return share * of_class + (1 - share) * of_tokens + self.method.weight * far


class _Shared(nn.Module):
    """A + U_l V_l and a bias for each of several layers."""

    def __init__(self, first: nn.Linear, count: int, rank: int):
        super().__init__()
        self.weight = first.weight
        rows, columns = first.weight.shape
        factors = [_factors(rows, columns, rank, first.weight.device) for _ in range(count)]
        self.up, self.down = (nn.ParameterList(each) for each in zip(*factors, strict=True))
        self.bias = nn.ParameterList([nn.Parameter(first.bias.detach().clone()) for _ in range(count)])

    def forward(self, rows: Tensor) -> list[Tensor]:
        each = zip(self.up, self.down, self.bias, strict=True)
        return [F.linear(rows, self.weight + up @ down, bias) for up, down, bias in each]


def _factors(outputs: int, inputs: int, rank: int, device: torch.device) -> tuple[nn.Parameter, nn.Parameter]:
    """U (outputs, rank) as torch starts a linear's weight, and V (rank, inputs) 0."""
    up = nn.Parameter(torch.empty(outputs, rank, device=device))
    nn.init.kaiming_uniform_(up, a=5**0.5)
    return up, nn.Parameter(torch.zeros(rank, inputs, device=device))
