"""Every method that Hugging Face PEFT has too, at equal values on all linears of a ViT: a training step of ours to theirs.

python -m benchmarks.against_peft                                  # ViT-S/16, batch 8
python -m benchmarks.against_peft --only lora --rounds 5           # rows whose name holds one of these words
python -m benchmarks.against_peft --arch vit_tiny_patch16_224

Both hold the same values, and their outputs are compared before they are timed. On a CPU the processor time of this process
counts. At the end: the rows in which ours is slower. PEFT's prompts and prefixes, which want a transformers model, are not here.
"""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import interleaved, machine, options, ratios, wanted, write_ratios
from benchmarks.variants import EVERY_LINEAR
from peft_core import adapt
from peft_core.attach import grafts_named
from peft_core.counting import kept_bytes
from peft_core.grafts.graft import Delta

PATTERN = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
SLOWER = 1.02
"""Above this, measuring again rarely changes who is ahead."""


@dataclasses.dataclass
class Row:
    """A method of ours, PEFT's configuration, and where a tensor of a change stands in their layer."""

    method: str
    ours: dict[str, Any]
    config: str
    theirs: dict[str, Any]
    names: dict[str, str]
    join: Callable[[nn.Module, nn.Module], None] | None = None
    """Makes equal what is no parameter."""

    @property
    def name(self) -> str:
        form = self.ours.get("form") or self.ours.get("variant")
        return f"{self.method} {form}" if form else self.method


def same_projections(ours: nn.Module, theirs: nn.Module) -> None:
    """VeRA's frozen A and B."""
    for name in "AB":
        drawn = ours.get_buffer(f"peft.vera.shared_{name}.value")
        drawn.copy_(getattr(theirs, f"vera_{name}")["default"][: drawn.shape[0], : drawn.shape[1]])


LOW_RANK = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
GLORA = {
    f"{name}.{ours}": f"glora_{name}.default.{theirs}"
    for name, parts in {"A": "XX", "B": "XX", "C": "XX", "D": "X", "E": "X"}.items()
    for ours, theirs in ((("down", "Xd"), ("up", "Xu")) if len(parts) == 2 else (("value", "X"),))
}
ROWS = [
    Row("lora", dict(rank=8), "LoraConfig", dict(r=8, lora_alpha=8), LOW_RANK),
    Row("dora", dict(rank=8), "LoraConfig", dict(r=8, lora_alpha=8, use_dora=True),
        LOW_RANK | {"magnitude": "lora_magnitude_vector.default.weight"}),
    Row("adalora", dict(rank=8, target_rank=8, alpha=8.0), "AdaLoraConfig",
        dict(init_r=8, target_r=8, lora_alpha=8, total_step=1000), {name: f"lora_{name}.default" for name in "ABE"}),
    Row("gralora", dict(rank=8, cuts=2, alpha=8.0), "GraloraConfig", dict(r=8, alpha=8, gralora_k=2),
        {"down": "gralora_A.default", "up": "gralora_B.default"}),
    Row("vera", dict(rank=64), "VeraConfig", dict(r=64), {name: f"vera_lambda_{name}.default" for name in "db"},
        same_projections),
    Row("loha", dict(rank=8), "LoHaConfig", dict(r=8, alpha=8),
        {f"w{i}_{ab}": f"hada_w{i}_{ab}.default" for i in (1, 2) for ab in "ab"}),
    Row("lokr", dict(rank=8, alpha=8.0), "LoKrConfig", dict(r=8, alpha=8),
        {name: f"lokr_{name}.default" for name in ("w1", "w2", "w2_a", "w2_b")}),
    Row("hira", dict(rank=32), "HiraConfig", dict(r=32), {name: f"hira_{name}.default" for name in "AB"}),
    Row("hra", dict(rank=8), "HRAConfig", dict(r=8), {"u": "hra_u.default"}),
    Row("oft", dict(block_size=32, neumann_terms=5), "OFTConfig", dict(r=0, oft_block_size=32, num_cayley_neumann_terms=5),
        {"vectors": "oft_R.default.weight"}),
    Row("miss", dict(rank=64), "MissConfig", dict(r=64), {"m": "miss_block.default"}),
    Row("miss", dict(rank=64, form="bat"), "MissConfig", dict(r=64, init_weights="bat"), {"m": "miss_block.default"}),
    Row("road", dict(variant="road_1"), "RoadConfig", dict(variant="road_1", group_size=64),
        {name: f"road_{name}.default" for name in ("theta", "alpha")}),
    Row("glora", dict(rank=4), "GloraConfig", dict(r=4, config_A_B="lora", config_C="lora", config_D_E="vector"), GLORA),
    Row("shira", dict(rank=8, seed=3), "ShiraConfig", dict(r=8, random_seed=3), {"values": "shira_weight.default"}),
    Row("ia3", dict(targets=("qkv", "proj", "fc1"), feedforward=("fc2",)), "IA3Config", dict(feedforward_modules=r".*fc2"),
        {"scale": "ia3_l.default"}),
    Row("layer_norm", {}, "LNTuningConfig", dict(target_modules=r"blocks\.\d+\.norm[12]|norm"), {}),
]  # fmt: skip


def pair(row: Row, arch: str, device: torch.device) -> dict[str, nn.Module]:
    """Ours and theirs, of one stock model, with the same values in all that trains."""
    import peft

    def stock() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(arch, num_classes=100)

    targets = {} if row.method in ("ia3", "layer_norm") else {"targets": EVERY_LINEAR}
    ours: Any = adapt(stock(), row.method, **targets, **row.ours)
    config = getattr(peft, row.config)(**{"target_modules": PATTERN, "modules_to_save": ["head"]} | row.theirs)
    theirs: Any = peft.get_peft_model(stock(), config)
    with torch.no_grad():
        if row.join is not None:
            row.join(ours, theirs.base_model)
        paths = {id(module): path for path, module in ours.named_modules()}
        for module, _, change in grafts_named(ours, row.method):
            if isinstance(change, Delta):
                for name, parameter in change.named_parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
                    there = theirs.get_submodule(f"base_model.model.{paths[id(module)]}").get_parameter(row.names[name])
                    there.copy_(fitting(parameter, there))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    if counts[0] != counts[1]:
        print(f"{row.name}: ours trains {counts[0]:,} values, theirs {counts[1]:,}")
    return {"ours": ours.to(device).train(), "PEFT": theirs.to(device).train()}


def fitting(value: Tensor, there: Tensor) -> Tensor:
    """Some of theirs hold the rank last where ours do first."""
    return value.mT if value.dim() > 1 and value.shape != there.shape == value.mT.shape else value.view_as(there)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    chosen = wanted(args.only, [row.name for row in ROWS])
    part = f"{args.arch}, batch {args.batch}, float32"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    print(f"| {'method':12} | time to PEFT's | kept bytes to PEFT's | outputs differ by |\n|---|---|---|---|")
    slower = []
    for row in (row for row in ROWS if row.name in chosen):
        models = pair(row, args.arch, args.device)
        size = timm.get_pretrained_cfg(args.arch).input_size[-2:]  # type: ignore[union-attr]
        x = torch.randn(args.batch, 3, *size, device=args.device)
        labels = torch.arange(args.batch, device=args.device) % 100
        with torch.no_grad():
            one, other = (model(x) for model in models.values())
            apart = ((one - other).norm() / other.norm()).item()

        def loss(model: nn.Module, x: Tensor = x, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(model(x), labels)

        kept = {name: kept_bytes(lambda model=model: loss(model), model) for name, model in models.items()}
        steps = {name: stepper(model, loss) for name, model in models.items()}
        time = ratios(interleaved(steps, args.rounds, args.device, of_process=True), "PEFT")["ours"]
        bytes_ = kept["ours"] / kept["PEFT"]
        print(f"| {row.name:12} | {time:.2f} | {bytes_:.2f} | {apart:.0e} |", flush=True)
        write_ratios(args.ratios, part, f"{row.name} to PEFT's", time=time, kept=bytes_)
        slower += [row.name] * (time > SLOWER)
        del models, steps
        gc.collect()
    print(f"slower than PEFT: {', '.join(slower) or 'none'}")


def stepper(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
