"""ZipLoRA: a subject's LoRA and a style's as one, which draws either as they did and both together.

Shah et al., "ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs", ECCV 2024:

    ΔW = m_c ⊙ ΔW_c + m_s ⊙ ΔW_s
    L = ‖f(ΔW; x_c) − f(ΔW_c; x_c)‖² + ‖f(ΔW; x_s) − f(ΔW_s; x_s)‖² + λ Σ mean |m_c ⊙ m_s|

m (in) has a coefficient for each input of each layer and starts at 1, x_c and x_s are the two LoRAs' own pictures, noised alike
and with their own prompts, and the last term keeps the two out of each other's columns. Layers, loss, λ = 0.01, 100 steps, weight
decay and clipping are those of mkshing/ziplora-pytorch (the authors have no code). It learns by AdamW at 5e-5, with which a
coefficient moves by 0.005 in 100 steps: here it is 0.01. A convolution's inputs are its in·kh·kw, of which nobody says anything.
A layer that one of the two alone changes keeps it as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft_data.batches import generator_of
from torch import Tensor, nn

from diffusion_peft.base.bases import Base
from diffusion_peft.data.concepts import read_concepts
from diffusion_peft.data.examples import BucketBatches, Examples
from diffusion_peft.data.prepare import prepare
from diffusion_peft.drawing.draw import drawing_device
from diffusion_peft.files.layers import Layer
from diffusion_peft.training.denoise import Denoiser, _inputs
from diffusion_peft.training.flow import flow_of
from diffusion_peft.training.noise import Discrete, Process, alphas_of
from peft_core import adapt, remove
from peft_core.anatomies import Place
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.jobs.runs.process import tell
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank

NAME = "zipped"


class Zipped(LowRank):
    """W' = W + Σ_i B_i (A_i ⊙ m_i), or W + B_i A_i of one i alone (`acting`)."""

    def __init__(self, layers: Sequence[Layer], like: Tensor) -> None:
        Delta.__init__(self)
        self.scale, self.dropout = 1.0, None
        self.acting: int | None = None
        dtype = torch.promote_types(like.dtype, torch.float32)
        for number, layer in enumerate(layers):
            down, up = (
                layer.tensors["A"].to(like.device, dtype),
                layer.tensors["B"].to(like.device, dtype) * layer.scale,
            )
            self.register_buffer(f"A{number}", down)
            self.register_buffer(f"B{number}", up)
        self.mergers = nn.ParameterList(torch.ones(down.shape[1], device=like.device, dtype=dtype) for _ in layers)

    def down(self, number: int) -> Tensor:
        return self.get_buffer(f"A{number}") * self.mergers[number]

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.acting is not None:
            return self.get_buffer(f"A{self.acting}"), self.get_buffer(f"B{self.acting}")
        numbers = range(len(self.mergers))
        return torch.cat([self.down(n) for n in numbers]), torch.cat([self.get_buffer(f"B{n}") for n in numbers], 1)

    def overlap(self) -> Tensor:
        """mean |m_c ⊙ m_s|."""
        one, other = self.mergers
        return (one * other).abs().mean()


class Alone(LowRank):
    """The change of a layer that one of the two alone has."""

    def __init__(self, layer: Layer, like: Tensor, owner: int) -> None:
        Delta.__init__(self)
        self.scale, self.dropout, self.owner = layer.scale, None, owner
        dtype = torch.promote_types(like.dtype, torch.float32)
        for name in ("A", "B"):
            self.register_buffer(name, layer.tensors[name].to(like.device, dtype))


@dataclass(frozen=True, kw_only=True)
class Zip(Method):
    """Puts two adapters' layers on a denoiser; no method of any list.

    Args:
        sets: by path, of the subject and of the style.
    """

    sets: Any = ()

    grafts: ClassVar[bool | None] = None

    def install(self, plan: Plan) -> None:
        places = {place.module: place for place in plan.anatomy.places if place.rows is None}
        for path in dict.fromkeys(path for own in self.sets for path in own):
            place = places.get(path, Place("layer", path))
            weight = plan.stock(place)
            both = [own[path] for own in self.sets if path in own]
            owner = 0 if path in self.sets[0] else 1
            plan.change_weight(place, Zipped(both, weight) if len(both) == 2 else Alone(both[0], weight, owner))


@dataclass(frozen=True)
class Zipping:
    """How the coefficients are learnt.

    Args:
        steps: at most; fewer where the two no longer overlap.
        weight: λ.
    """

    steps: int = 100
    lr: float = 0.01
    weight: float = 0.01
    seed: int = 0


class Pair:
    """A denoiser under two adapters that are to be one."""

    def __init__(self, model: nn.Module, sets: tuple[dict[str, Layer], dict[str, Layer]]) -> None:
        if not set(sets[0]) & set(sets[1]):
            raise PeftError(
                "these two adapters share no layer, so there is nothing to zip: --how cat puts both in one file."
            )
        adapt(model, Zip(sets=sets), name=NAME)
        paths = {id(module): path for path, module in model.named_modules()}
        self.layers: dict[str, Any] = {paths[id(module)]: graft for module, _, graft in grafts_named(model, NAME)}
        self.zipped = [graft for graft in self.layers.values() if isinstance(graft, Zipped)]

    def act(self, number: int | None) -> None:
        """Lets one of the two act by itself, or both as merged."""
        for graft in self.layers.values():
            if isinstance(graft, Zipped):
                graft.acting = number
            else:
                graft.enabled = number in (None, graft.owner)

    def overlap(self) -> Tensor:
        return torch.stack([graft.overlap() for graft in self.zipped]).sum()

    def result(self) -> dict[str, Layer]:
        """Both in one, their ranks side by side."""
        self.act(None)
        found = {}
        for path, graft in self.layers.items():
            down, up = (factor.detach().cpu().clone() for factor in graft.factors())
            found[path] = Layer("lora", {"A": down, "B": up}, graft.scale)
        return found


def loss_of(pair: Pair, predict: Any, noised: Sequence[Mapping[str, Any]], weight: float) -> tuple[Tensor, Tensor]:
    """L, and the overlap in it.

    Args:
        predict: what the denoiser says of such inputs.
        noised: inputs of the subject and of the style.
    """
    with torch.no_grad():
        wanted = []
        for number, inputs in enumerate(noised):
            pair.act(number)
            wanted.append(predict(**inputs).float())
    pair.act(None)
    overlap = pair.overlap()
    total = weight * overlap
    for inputs, each in zip(noised, wanted, strict=True):
        total = total + F.mse_loss(predict(**inputs).float(), each)
    return total, overlap


def zipped(
    base: Base, sets: Sequence[dict[str, Layer]], runs: Sequence[Mapping[str, Any]], how: Zipping
) -> dict[str, Layer]:
    """The two adapters of a base's denoiser as one set of LoRA layers.

    Args:
        sets: their layers by path, of the subject and of the style.
        runs: for each, `fit`'s settings for its pictures and words.

    Raises:
        PeftError: what is wrong with pictures or words; adapters that share no layer.
    """
    device = drawing_device()
    model: Any = base.part(base.denoiser).to(device)
    examples = [_examples(base, settings, device) for settings in runs]
    base.free("vae")
    remove(model)
    pair = Pair(model, (sets[0], sets[1]))
    module = Denoiser(
        model, {}, _process(base), how.steps, family=base.family, normal=base.family.normal(base), told=_told(base)
    )
    module.to(device)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=how.lr, weight_decay=1e-4)
    batches = [_endless(BucketBatches(each, 1, seed=how.seed)) for each in examples]
    first = last = float(pair.overlap().detach())
    for step in range(how.steps):
        # the same draws for both: the same time, and the same noise where their pictures have one size
        drawn = [{key: value.to(device) for key, value in next(each).items()} for each in batches]
        noised = [_inputs(module.noised(each, generator_of(how.seed, 4, step))) for each in drawn]
        total, overlap = loss_of(pair, module.predict, noised, how.weight)
        last = float(overlap.detach())
        if not last:
            break
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
    tell(f"zipped {len(pair.zipped)} layers: their overlap went from {first:.3g} to {last:.3g}")
    found = pair.result()
    remove(model, NAME)
    return found


def _examples(base: Base, settings: Mapping[str, Any], device: torch.device) -> Examples:
    plain = dict(settings) | {"val": None, "caption_dropout": 0.0, "class_prompt": None, "prior": None}
    concepts = [dataclasses.replace(each, class_prompt=None, prior=None) for each in read_concepts(plain)]
    return prepare(base, concepts, plain, device, trains_text=False)[0]


def _endless(batches: BucketBatches) -> Any:
    while True:
        yield from batches


def _process(base: Base) -> Process:
    if base.family.flows:
        return flow_of(base.config("scheduler"), base.family.patch(base), {})
    return Discrete(alphas_of(base.config("scheduler")), base.prediction_type)


def _told(base: Base) -> float | None:
    return base.family.guidance(base) if base.family.is_distilled(base) else None
