"""The models that train_step, memory and latency compare: the floor, full fine-tuning, Hugging Face PEFT and our methods."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import adapt
from peft_core.prefix import Prefix

EVERY_LINEAR = ("qkv", "proj", "fc1", "fc2")
HALF = range(6, 12)


@dataclass(frozen=True)
class Variant:
    """A row: how the stock model becomes the one that trains."""

    name: str
    make: Callable[[nn.Module], nn.Module]
    prefix: bool = False
    """Start from cached features of the frozen prefix."""


def ours(method: str, **hyper: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: adapt(model, method, **hyper)


def floor(model: nn.Module) -> nn.Module:
    """Frozen, but for the head, with the gradient flowing down to the token embedding."""
    adapt(model, "linear")
    model.patch_embed.register_forward_hook(_requires_grad)
    return model


def _requires_grad(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def hugging_face(pattern: str) -> Callable[[nn.Module], nn.Module]:
    config = dict(r=8, lora_alpha=8, target_modules=rf"blocks\.\d+\.({pattern})", modules_to_save=["head"])
    return lambda model: peft.get_peft_model(model, peft.LoraConfig(**config))


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
    Variant("lora r8 qkv, last 6 blocks", ours("lora", rank=8, targets=("qkv",), blocks=HALF)),
    Variant("… with cached prefix", ours("lora", rank=8, targets=("qkv",), blocks=HALF), prefix=True),
    Variant("lora r8 all linears, last 6 blocks", ours("lora", rank=8, targets=EVERY_LINEAR, blocks=HALF)),
    Variant("… with cached prefix ", ours("lora", rank=8, targets=EVERY_LINEAR, blocks=HALF), prefix=True),
    Variant("ssf", ours("ssf")),
    Variant("vpt deep 10", ours("vpt", tokens=10, deep=True)),
    Variant("vpt shallow 10", ours("vpt", tokens=10)),
    Variant("adaptformer 64", ours("adaptformer", bottleneck=64, dropout=0.0)),
    Variant("adapter 8 houlsby", ours("adapter", bottleneck=8, position="houlsby")),
    Variant("adapter 8 pfeiffer", ours("adapter", bottleneck=8, position="pfeiffer")),
    Variant("adapter 8 parallel", ours("adapter", bottleneck=8, position="parallel")),
    Variant("adapter_plus 8", ours("adapter_plus", bottleneck=8, drop_path=0.0)),
]


@dataclass
class Trainer:
    """One variant, ready to step: forward, loss, backward, AdamW on what trains."""

    variant: Variant
    arch: str
    batch: int
    bf16: bool = False
    forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        stock = timm.create_model(self.arch, num_classes=100)
        self.model = self.variant.make(stock).train()
        self.x = torch.randn(self.batch, 3, *stock.patch_embed.img_size)
        self.labels = torch.arange(self.batch) % 100
        self.forward = self.model
        if self.variant.prefix:
            prefix = Prefix(self.model)
            self.x, self.forward = prefix.features(self.x), prefix.rest
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainables, lr=1e-5)

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return F.cross_entropy(self.forward(self.x).float(), self.labels)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def chosen(words: list[str]) -> list[Variant]:
    """The floor, and the variants whose name holds one of the words (all without words)."""
    return [v for v in VARIANTS if v.name == "floor" or not words or any(word in v.name for word in words)]


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every run in every round, taken in turns so that drift of the machine meets all alike; by the processor's
    own clock with `time.process_time`, where other work shares it."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Median over rounds of a run's time to the base's time in the same round."""
    return {
        name: statistics.median(t / b for t, b in zip(times, seconds[base], strict=True))
        for name, times in seconds.items()
    }


def machine() -> str:
    """What the figures were taken on, in one line."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def has_bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
