"""How many architectures have an anatomy: every name of timm and open_clip on the meta device, and transformers' families.

    python -m benchmarks.described                          # some minutes
    python -m benchmarks.described --every 50 --of timm     # a sample

open_clip's models whose text tower is a transformers model get its configuration from the hub; here it is a small one of the
same kind, written to a folder. A model with a tower that is unknown counts not.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.measuring import options
from peft_core.anatomies import Anatomy, describe, submodule

TINY: dict[str, Any] = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
TEXT: dict[str, dict[str, Any]] = {
    "roberta": TINY, "xlm-roberta": TINY,
    "mt5": dict(d_model=16, d_ff=24, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=2),
    "m2m_100": dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                    encoder_attention_heads=2, decoder_attention_heads=2),
}  # fmt: skip
"""A transformers text model's kind -> what makes it small."""
KINDS = {"xlm-roberta": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100"}
"""What a hub's name holds -> its kind."""
PICTURES = dict(image_size=32, patch_size=8)
CONVS = dict(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit", TINY | PICTURES),
    "DINOv2": ("dinov2", TINY | PICTURES),
    "DINOv3": ("dinov3_vit", TINY | PICTURES),
    "SigLIP": ("siglip_vision_model", TINY | PICTURES),
    "SigLIP 2": ("siglip2_vision_model", TINY | dict(patch_size=8, num_patches=16)),
    "CLIP's image tower": ("clip_vision_model", TINY | PICTURES),
    "CLIP": ("clip", dict(text_config=TINY, vision_config=TINY | PICTURES)),
    "Swin": ("swin", dict(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)),
    "ConvNeXt": ("convnext", CONVS),
    "VideoMAE": ("videomae", TINY | PICTURES | dict(num_frames=4)),
    "Hiera": ("hiera", dict(image_size=[64, 64], embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4], num_query_pool=2)),
}
"""transformers' families -> the kind of their configuration, and what makes it small."""


class Unwritten(TorchFunctionMode):
    """What starts weights does nothing on the meta device, where it is slow and has nothing to write into."""

    STARTS = frozenset(
        "normal_ uniform_ erfinv_ mul_ add_ div_ clamp_ zero_ fill_ constant_ trunc_normal_ kaiming_uniform_ copy_".split()
    )

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in self.STARTS:
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def checked(model: nn.Module, name: str) -> Anatomy | None:
    """A model's anatomy, of which every place and step is a module there."""
    anatomy = describe(model)
    if anatomy is None:
        return None
    for place in anatomy.places:
        module = submodule(model, place.module)
        assert module is not None and place.weight in module._parameters, (name, place)
        rows = module._parameters[place.weight].shape[0]  # type: ignore[union-attr]
        assert place.rows is None or 0 <= place.rows[0] < place.rows[1] <= rows, (name, place)
    for step in anatomy.sublayers:
        for path in (step.norm, step.body, step.out, step.entry, *step.into, *([step.gate] if step.gate else [])):
            assert submodule(model, path) is not None, (name, path)
    anatomy.expand(anatomy.default_targets)
    return anatomy


def of_timm() -> dict[str, Callable[[], nn.Module]]:
    import timm

    return {name: lambda name=name: timm.create_model(name) for name in timm.list_models()}


def of_open_clip(folder: Path) -> dict[str, Callable[[], nn.Module]]:
    """Args: folder: takes the configurations of text towers."""
    import open_clip

    def made(name: str) -> nn.Module:
        config = {
            key: value for key, value in (open_clip.get_model_config(name) or {}).items() if not key.startswith("_")
        }
        custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        cls = open_clip.CoCa if "multimodal_cfg" in config else cls
        config["vision_cfg"].pop("timm_model_pretrained", None)
        if hub := config["text_cfg"].get("hf_model_name"):
            config["text_cfg"] |= {"hf_model_name": text_folder(folder, hub), "hf_model_pretrained": False}
        with contextlib.suppress(KeyError):
            config.pop("init_logit_scale")
        return cls(**config)

    return {name: lambda name=name: made(name) for name in open_clip.list_models()}


def text_folder(folder: Path, hub: str) -> str:
    """A folder with a small configuration of the kind of a hub's text model."""
    kind = next(kind for word, kind in KINDS.items() if word in hub)
    (folder / kind).mkdir(exist_ok=True)
    (folder / kind / "config.json").write_text(json.dumps({"model_type": kind} | TEXT[kind]), encoding="utf-8")
    return str(folder / kind)


def of_transformers() -> dict[str, Callable[[], nn.Module]]:
    from transformers import AutoConfig, AutoModel

    def made(kind: str, small: dict[str, Any]) -> nn.Module:
        return AutoModel.from_config(AutoConfig.for_model(kind, **small))

    return {name: lambda kind=kind, small=small: made(kind, small) for name, (kind, small) in FAMILIES.items()}


def counted(models: dict[str, Callable[[], nn.Module]], device: str = "meta") -> Iterator[tuple[str, str | None, str]]:
    """Of each model its name, its family (None where it or one of its towers is unknown), and why."""
    for name, make in models.items():
        with torch.device(device), Unwritten():
            model = make()
        anatomy = checked(model, name)
        if anatomy is None:
            yield name, None, f"no anatomy for {type(model).__name__}"
        elif anatomy.unknown:
            yield name, None, ", ".join(f"the {tower} tower is a {owner}" for tower, owner in anatomy.unknown.items())
        else:
            yield name, anatomy.family, "with residual steps" if anatomy.sublayers else "layers alone"


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """Prints the counts, and gives of each library how many are known, and how many there are."""
    parser = options(__doc__)
    libraries = ("timm", "open_clip", "transformers")
    parser.add_argument("--of", nargs="+", choices=libraries, default=libraries)
    parser.add_argument("--every", type=int, default=1, help="every so many names of timm and open_clip")
    chosen = parser.parse_args(argv)
    sums = {}
    with tempfile.TemporaryDirectory() as folder:
        for library in chosen.of:
            lists = {"timm": of_timm, "open_clip": lambda: of_open_clip(Path(folder)), "transformers": of_transformers}
            models = lists[library]()
            every = 1 if library == "transformers" else chosen.every
            models = {name: models[name] for name in list(models)[::every]}
            # transformers makes tensors of its own while it builds, which a meta device cannot give
            found = list(counted(models, "cpu" if library == "transformers" else "meta"))
            known = [each for each in found if each[1] is not None]
            kinds = Counter(why for _, _, why in known)
            sums[library] = len(known), len(found)
            told = ", ".join(f"{count:,} {why}" for why, count in sorted(kinds.items()))
            print(f"{library}: {len(known):,} of {len(found):,} ({told})", flush=True)
            for name, family, why in found:
                if family is None:
                    print(f"  {name}: {why}")
    return sums


if __name__ == "__main__":
    main()
