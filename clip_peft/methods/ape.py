from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, product
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.remembering import ALPHAS, BETAS, Remembering, sums_of_classes
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative, Range, Share

GAMMAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)


@dataclass(frozen=True, kw_only=True)
class APE(OpenVocabularyMethod):
    """APE: a cache of training features on the channels that tell the classes apart,
    logits = s · f̂ tᵀ + α exp(−β (1 − f′ K′ᵀ)) (L ⊙ exp(γ D)), f′, K′ the normalised parts of f̂ and of the keys K (N, E).

    Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023;
    yangyangyang127/APE. The Q kept channels have the highest −λ S + (1 − λ) V: S a channel's mean product between different
    classes' texts and keys, V its variance over the texts. D_i = log₂ 1 / p_i is how little the text of picture i's class is to
    be seen in its key, p = softmax(K′ t′ᵀ) without a scale.

    With `fine_tune` (APE-T) a residual of each class on these channels (chosen by the texts alone) is added to its text and to
    its keys, logits = s · f̂ (t + r)ᵀ + α exp(−β (1 − f̂ (K + r)ᵀ)) (L ⊙ v), and each key's strength v trains, too: C · Q + N
    parameters. AdamW with ε 1e-3 and decay on both, as there. Their label smoothing is 0. Their texts are GPT-3's (CuPL) beside
    the templates, here templates; their script searches finer grids of a range for each data set.

    Args:
        alpha: α; None is 1 until it is chosen on val.
        beta: β; None likewise, 1.
        gamma: γ; None likewise, 0.1; without effect where it is fine-tuned.
        channels: Q / E (there 400 to 900 of 1,024 by data set; 500 on ImageNet).
        balance: λ; None is 0.7, fine-tuned 0.2 (there 0.1 to 0.9 by data set, 0.7 on ImageNet; 0.2).
        fine_tune: whether residuals and strengths train.
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative | None = None
    beta: NotNegative | None = None
    gamma: NotNegative | None = None
    channels: Annotated[float, Range(above=0, most=1)] = 0.75
    balance: Share | None = None
    fine_tune: bool = False
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it adds what a cache of pictures says"
    of_classes: ClassVar[str | None] = "its cache holds pictures of the classes it was filled with"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0), ({"fine_tune": True}, 400_000))

    @classmethod
    def examples(cls) -> Iterable["APE"]:
        return cls(fine_tune=True), cls(channels=0.5)

    @property
    def strengths(self) -> tuple[float, float, float]:
        """α, β, γ."""
        given = zip((self.alpha, self.beta, self.gamma), (1.0, 1.0, 0.1), strict=True)
        alpha, beta, gamma = (default if value is None else value for value, default in given)
        return alpha, beta, gamma

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _APE(clip, self, names)


class _APE(Remembering, TemplateLearner):
    sized = ("keys", "values")

    def __init__(self, clip: Clip, method: APE, names: Sequence[str]):
        super().__init__(clip, method, names)
        width, device = clip.tower.features, clip.tower.device
        kept = max(1, round(method.channels * width))
        self.keys: Tensor
        self.values: Tensor
        self.places: Tensor
        self.register_buffer("keys", torch.empty(0, width, device=device))
        self.register_buffer("values", torch.empty(0, dtype=torch.long, device=device))
        self.register_buffer("places", torch.arange(kept, device=device))
        if method.fine_tune:
            self.residual = nn.Parameter(torch.zeros(len(self.names), kept, device=device))
            self.strength = nn.Parameter(torch.empty(0, device=device))
            self.sized += ("strength",)

    def start(self, features: Tensor, labels: Tensor) -> None:
        self.keys, self.values = F.normalize(features.mean(0).float(), dim=-1).to(features.dtype), labels
        if self.method.fine_tune:
            self.strength = nn.Parameter(self.keys.new_ones(len(labels)))
        texts = self.weights().to(self.keys.dtype)
        own = (texts, torch.arange(len(texts), device=texts.device))
        rows = own if self.method.fine_tune else (torch.cat((texts, self.keys)), torch.cat((own[1], labels)))
        default = 0.2 if self.method.fine_tune else 0.7
        balance = default if self.method.balance is None else self.method.balance
        criterion = (1 - balance) * texts.var(0) - balance * similarity(*rows, len(texts))
        self.places = criterion.topk(len(self.places)).indices

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        self.check_started()
        alpha, beta, gamma = self.method.strengths
        weights = self.weights() if weights is None else weights
        texts, near = self._compared(features, weights)
        return texts + alpha * self._cache(near, beta, gamma, weights)

    def _compared(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the texts B C, and each key's cosine B N."""
        f = F.normalize(features, dim=-1).to(self.keys.dtype)
        weights = weights.to(f.dtype)
        if not self.method.fine_tune:
            return self.clip.scale * product(f, weights), product(self._part(f), self._part(self.keys))
        texts = weights.index_add(1, self.places, self.residual)
        return self.clip.scale * product(f, texts), product(
            f, self.keys.index_add(1, self.places, self.residual[self.values])
        )

    def _part(self, rows: Tensor) -> Tensor:
        return F.normalize(rows[:, self.places], dim=-1)

    def _cache(self, near: Tensor, beta: float, gamma: float, weights: Tensor) -> Tensor:
        strength = self.strength if self.method.fine_tune else (gamma * self._doubt(weights)).exp()
        weight = torch.exp(-beta * (1 - near)) * strength
        return weight.new_zeros(weight.shape[0], len(self.names)).index_add(1, self.values, weight)

    def _doubt(self, weights: Tensor) -> Tensor:
        """D: N."""
        return self.remembered("doubt", partial(self._divergence, weights), [self.keys, weights])

    def _divergence(self, weights: Tensor) -> Tensor:
        p = product(self._part(self.keys), self._part(weights.to(self.keys.dtype))).softmax(-1) + 1e-6
        right = F.one_hot(self.values, len(self.names)).to(p.dtype)
        return (right * ((right + 1e-6) / p).log2()).sum(-1)

    def choices(self, features: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        method, at = self.method, self.method.strengths
        searched = method.gamma is None and not method.fine_tune
        if None not in (method.alpha, method.beta) and not searched:
            return
        grids = zip((method.alpha, method.beta, method.gamma), at, (ALPHAS[::2], BETAS[::2], GAMMAS), strict=True)
        alphas, betas, gammas = ([now, *others] if given is None else [now] for given, now, others in grids)
        weights = self.weights()
        texts, near = self._compared(features, weights)
        for beta in betas:
            for gamma in gammas if searched else at[2:]:
                cache = self._cache(near, beta, gamma, weights)
                for alpha in alphas:
                    chosen = {"alpha": alpha, "beta": beta} | ({"gamma": gamma} if searched else {})
                    yield chosen, texts + alpha * cache

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return ({"params": trained, "lr": lr, "weight_decay": weight_decay, "eps": 1e-3},) if trained else ()


def similarity(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """E: the mean of each channel's products over all pairs of rows of different classes."""
    sums, counts = sums_of_classes(rows, labels, classes)
    pairs = counts.sum().square() - counts.square().sum()
    return (sums.sum(0).square() - sums.square().sum(0)) / pairs.clamp(min=1)
