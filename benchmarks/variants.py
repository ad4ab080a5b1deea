"""The models that train_step, memory and latency compare: the floor, full fine-tuning, Hugging Face PEFT and our methods."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import CPU, autocast, pictures, wanted
from peft_core import adapt, lifecycle
from peft_core.errors import PeftError
from peft_core.passes.prefix import FrozenPrefix
from peft_core.registry import find_method, method_files

EVERY_LINEAR = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Variant:
    """A row: how the stock model becomes the one that trains."""

    name: str
    make: Callable[[nn.Module], nn.Module]
    prefix: bool = False
    """Start from cached features of the frozen prefix."""


def ours(method: str, *, last_half: bool = False, **hyper: Any) -> Callable[[nn.Module], nn.Module]:
    """With `last_half` on the later half of the blocks."""

    def make(model: nn.Module) -> nn.Module:
        depth = len(cast("Any", model).blocks)
        chosen: dict[str, Any] = {"blocks": range(depth // 2, depth)} if last_half else {}
        return adapt(model, method, **hyper, **chosen)

    return make


def floor(model: nn.Module) -> nn.Module:
    """Frozen, but for the head, with the gradient flowing down to the token embedding."""
    adapt(model, "linear")
    cast("Any", model).patch_embed.register_forward_hook(_requires_grad)
    return model


def _requires_grad(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def hugging_face(pattern: str) -> Callable[[nn.Module], nn.Module]:
    config = dict(r=8, lora_alpha=8, target_modules=rf"blocks\.\d+\.({pattern})", modules_to_save=["head"])

    def make(model: nn.Module) -> nn.Module:
        import peft

        return peft.get_peft_model(model, peft.LoraConfig(**config))  # type: ignore[arg-type]

    return make


VARIANTS = [
    Variant("floor", floor),
    Variant("full fine-tuning", ours("full")),
    Variant("HF PEFT LoRA r8 qkv", hugging_face(r"attn\.qkv")),
    Variant("HF PEFT LoRA r8 all linears", hugging_face(r"attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2")),
    Variant("linear", ours("linear")),
    Variant("bitfit", ours("bitfit")),
    Variant("layer_norm", ours("layer_norm")),
    Variant("lora r8 q,v", ours("lora", rank=8, targets=("q", "v"))),
    Variant("lora r8 qkv", ours("lora", rank=8, targets=("qkv",))),
    Variant("lora r8 all linears", ours("lora", rank=8, targets=EVERY_LINEAR)),
    Variant("lora r8 qkv, last half", ours("lora", rank=8, targets=("qkv",), last_half=True)),
    Variant("… with cached prefix", ours("lora", rank=8, targets=("qkv",), last_half=True), prefix=True),
    Variant("lora r8 all linears, last half", ours("lora", rank=8, targets=EVERY_LINEAR, last_half=True)),
    Variant("… with cached prefix ", ours("lora", rank=8, targets=EVERY_LINEAR, last_half=True), prefix=True),
    Variant("shira r8 q,v", ours("shira", rank=8, targets=("q", "v"))),
    Variant("shira 2 a row, all linears", ours("shira", per_row=2, mask="magnitude", targets=EVERY_LINEAR)),
    Variant("pafi 0.5 % of all linears", ours("pafi", targets=EVERY_LINEAR)),
    Variant("ssf", ours("ssf")),
    Variant("vpt deep 10", ours("vpt", tokens=10, deep=True)),
    Variant("vpt shallow 10", ours("vpt", tokens=10)),
    Variant("adaptformer 64", ours("adaptformer", bottleneck=64, dropout=0.0)),
    Variant("adapter 8 houlsby", ours("adapter", bottleneck=8, position="houlsby")),
    Variant("adapter 8 pfeiffer", ours("adapter", bottleneck=8, position="pfeiffer")),
    Variant("adapter 8 parallel", ours("adapter", bottleneck=8, position="parallel")),
    Variant("adapter_plus 8", ours("adapter_plus", bottleneck=8, drop_path=0.0)),
]


def every_other(arch: str) -> list[Variant]:
    """The core's methods that no row above has, at their defaults, where this ViT takes them."""
    named = {variant.name.split()[0] for variant in VARIANTS}
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=100)
    found = []
    for name in method_files():
        method = find_method(name)
        if name in named or not method.__module__.startswith("peft_core.") or not method.grafts:
            continue
        try:
            adapt(copy.deepcopy(model), name)
        except PeftError as reason:
            print(f"{name} is left out: {reason}")
        else:
            found.append(Variant(name, ours(name)))
    return found


@dataclass
class Trainer:
    """One variant, ready to step: forward, loss, backward, AdamW on what trains."""

    variant: Variant
    arch: str
    batch: int
    bf16: bool = False
    device: torch.device = CPU
    compile: str | None = None
    forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        with self.device:  # large models take seconds to be made on a CPU
            stock = timm.create_model(self.arch, num_classes=100)
        self.model = self.variant.make(stock).to(self.device).train()
        self.x = pictures(stock, self.batch, self.device)
        self.labels = torch.arange(self.batch, device=self.device) % 100
        self.forward = self.model
        if self.variant.prefix:
            prefix = FrozenPrefix(self.model)
            self.x, self.forward = prefix.features(self.x), prefix.rest
        if self.compile:
            self.forward = torch.compile(self.forward, backend=self.compile)
        if lifecycle.wants(self.model, "prepare"):
            lifecycle.prepare(self.model, lifecycle.Losses(self.loss_of, [(self.x, self.labels)]))
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainables, lr=1e-5)

    def loss(self) -> Tensor:
        return self.loss_of((self.x, self.labels))

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        with autocast(self.device, self.bf16):
            return F.cross_entropy(self.forward(x).float(), labels)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        (self.loss() + lifecycle.penalty(self.model)).backward()
        self.optimizer.step()


def chosen(words: list[str], every: str | None = None) -> list[Variant]:
    """The floor, and the variants that the words ask for; with `every`, an architecture, all methods of the core."""
    known = VARIANTS + (every_other(every) if every else [])
    names = wanted(words, [v.name for v in known])
    found = [v for v in known if v.name == "floor" or v.name in names]
    if importlib.util.find_spec("peft") is None:
        print("Hugging Face PEFT is not installed: its rows are left out")
        found = [v for v in found if not v.name.startswith("HF PEFT")]
    return found
