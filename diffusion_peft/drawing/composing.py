"""Several adapters on one base, of which not all act at every denoising step or at every layer.

switch, composite: Zhong et al., "Multi-LoRA Composition for Image Generation", TMLR 2024: one adapter at a time, the next after
`every` steps; or all of them at each step, each by itself, with the mean of what they say under guidance.

k_lora: Ouyang et al., "K-LoRA: Unlocking Training-Free Fusion of Any Subject and Style LoRAs", CVPR 2025. Of a subject and a
style each layer takes one, anew at each step: the subject where S_c / γ > S · S_s, with S_i the sum of the K = r_c r_s largest
|ΔW_i|, γ the layers' mean of Σ|ΔW_c| / Σ|ΔW_s| (those above three times it left out), and S = α t/T + β, which rises with the
step t, so that the style comes in late (α = 1.5, β = 0.5). k_lora_star is S* = (α t/T + β') mod α, β' = 0.85 α, which the
authors advise for Flux, and for more of the style's blocks and less of its texture. The formulas are their code's
(HVision-NKU/K-LoRA); for t/T it counts the layers that have run, here steps are counted. Layers that one of the two alone
changes keep it, which that code does not allow.

b_lora: Frenkel et al., "Implicit Style-Content Separation using B-LoRA", ECCV 2024: the first one's content, the second's style.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffusion_peft.files.layers import Layer
from peft_core.adaptation import set_scale
from peft_core.attach import grafts_named

Way = Literal["add", "switch", "composite", "k_lora", "k_lora_star", "b_lora"]
ALPHA, BETA = 1.5, {"k_lora": 0.5, "k_lora_star": 0.85 * 1.5}


@dataclass(frozen=True)
class Adapter:
    """One of several on a denoiser: its adaptations there and their scales."""

    scales: dict[str, float]

    def let(self, model: nn.Module, act: bool) -> None:
        for name, scale in self.scales.items():
            set_scale(model, scale if act else 0.0, name)


class Composition:
    """Which adapters act: all, all the time. `at` is told the number of each denoising step before it is taken, `end` lets all
    act again."""

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        self.model, self.adapters = model, adapters

    @property
    def denoiser(self) -> Any:
        """What the pipeline calls."""
        return self.model

    def at(self, step: int) -> None:
        """Lets those act that do at this step."""

    def end(self) -> None:
        for adapter in self.adapters:
            adapter.let(self.model, True)

    @contextmanager
    def drawing(self, scheduler: Any) -> Iterator[None]:
        """Within the block pictures are drawn, in as many steps as the scheduler takes."""
        if not self.adapters:
            yield
            return
        take, done = scheduler.step, 0

        @functools.wraps(take)
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = take(*args, **kwargs)
            done += 1
            self.at(done)
            return result

        self.at(0)
        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step
            self.end()


class Switch(Composition):
    """One adapter at a time."""

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter], every: int) -> None:
        super().__init__(model, adapters)
        self.every = every

    def at(self, step: int) -> None:
        acting = step // self.every % len(self.adapters)
        for number, adapter in enumerate(self.adapters):
            adapter.let(self.model, number == acting)


class Composite(Composition):
    """Each adapter by itself, and the mean of what they say."""

    @property
    def denoiser(self) -> Any:
        return _Mean(self)

    def alone(self, number: int) -> None:
        for other, adapter in enumerate(self.adapters):
            adapter.let(self.model, other == number)


class _Mean:
    """Called as the denoiser, and otherwise like it."""

    def __init__(self, composition: Composite) -> None:
        self.composition = composition

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        said = []
        for number in range(len(self.composition.adapters)):
            self.composition.alone(number)
            said.append(self.composition.model(*args, **kwargs))
        return tree_map(lambda *each: torch.stack(each).mean(0), *said)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.composition.model, name)


class Choice(Composition):
    """At each layer some of the adapters, anew at each step.

    Args:
        layers: for each adapter, what it changes by the module's path.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter], layers: Sequence[dict[str, Layer]]) -> None:
        super().__init__(model, adapters)
        self.layers = layers
        paths = {id(module): path for path, module in model.named_modules()}
        self.grafts: list[dict[str, list[Any]]] = []
        for adapter in adapters:
            own: dict[str, list[Any]] = {}
            for name in adapter.scales:
                for module, _, graft in grafts_named(model, name):
                    own.setdefault(paths[id(module)], []).append(graft)
            self.grafts.append(own)

    def chosen(self, path: str, step: int) -> set[int]:
        """The numbers of the adapters that act there."""
        raise NotImplementedError(f"{type(self).__name__} must define chosen(path, step)")

    def at(self, step: int) -> None:
        for path in dict.fromkeys(path for own in self.grafts for path in own):
            acting = self.chosen(path, step)
            for number, own in enumerate(self.grafts):
                for graft in own.get(path, ()):
                    graft.enabled = number in acting


class Halves(Choice):
    """The first adapter's layers under one path, the second's under another."""

    def __init__(self, *args: Any, under: Sequence[str]) -> None:
        super().__init__(*args)
        self.under = under

    def chosen(self, path: str, step: int) -> set[int]:
        return {number for number, start in enumerate(self.under) if path.startswith(start)}


class KLoRA(Choice):
    """Of a subject and a style the one, or the other.

    Args:
        steps: T.
    """

    def __init__(
        self, model: nn.Module, adapters: Sequence[Adapter], layers: Sequence[dict[str, Layer]], way: str, steps: int
    ) -> None:
        super().__init__(model, adapters, layers)
        self.way, self.steps = way, steps
        content, style = layers
        self.sums: dict[str, tuple[float, float]] = {}
        sizes = []
        for path in (path for path in content if path in style):
            pair = content[path], style[path]
            one, other = (change_of(layer).abs().flatten() for layer in pair)
            self.sums[path] = top_sums(one, other, pair[0].rank * pair[1].rank)
            sizes.append((float(one.sum()), float(other.sum())))
        self.balance = balance(sizes)

    def chosen(self, path: str, step: int) -> set[int]:
        if path not in self.sums:
            return {0, 1}
        one, other = self.sums[path]
        return {0} if one / self.balance > other * scale_at(step / self.steps, self.way) else {1}


def scale_at(share: float, way: str) -> float:
    """S at t/T."""
    scale = ALPHA * share + BETA[way]
    return scale % ALPHA if way == "k_lora_star" else scale


def change_of(layer: Layer) -> Tensor:
    return (layer.tensors["B"] @ layer.tensors["A"]) * layer.scale


def top_sums(one: Tensor, other: Tensor, count: int) -> tuple[float, float]:
    """S_c and S_s, of so many entries of |ΔW_c| and |ΔW_s|."""
    first, second = (float(change.topk(min(count, len(change))).values.sum()) for change in (one, other))
    return first, second


def balance(sizes: Sequence[tuple[float, float]]) -> float:
    """γ, of each layer's Σ|ΔW_c| and Σ|ΔW_s|."""
    ratios = [one / other for one, other in sizes if other]
    if not ratios:
        return 1.0
    mean = sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < 3 * mean] or ratios
    return sum(kept) / len(kept) or 1.0
