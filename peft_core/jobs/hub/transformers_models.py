"""transformers' image classifiers by name: `hf:owner/model` of the hub, or a folder that `save_pretrained` wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peft_core.anatomies import Anatomy, describe
from peft_core.errors import PeftError
from peft_core.files import read_json
from peft_core.jobs.hub.backbone import HF, Backbone, new_head
from peft_core.jobs.hub.reach import in_cache, must_reach
from peft_core.jobs.runs.process import tell

CONFIG, LOOK, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_HALF = (0.5, 0.5, 0.5)
_NEW = ("classifier", "cls_classifier", "distillation_classifier", "fc_norm", "pooler", "vit.pooler")
"""Keys that begin so are a task's, and may be new."""


class FromTransformers(nn.Module):
    """A stock transformers model as a classifier: pictures B 3 H W → logits B C.

    Args:
        model: one `…ForImageClassification`, or a model whose `pooler_output` B D `head` reads.
        head: D → C; None where the model has its own.
        source: the folder or hub's name that its configuration comes from.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None, source: str = "") -> None:
        super().__init__()
        self.model, self.head, self.source = model, head, source

    def peft_anatomy(self) -> Anatomy | None:
        inner = describe(self.model)
        if inner is None:
            return None
        inner = inner.under("model")
        return inner if self.head is None else dataclasses.replace(inner, heads=["head"])

    def get_classifier(self) -> nn.Module:
        return self.model.classifier if self.head is None else self.head  # type: ignore[return-value]

    def stock_state(self) -> dict[str, Tensor]:
        """The weights under transformers' own keys; those of a head beside the model begin with `head.`."""
        state = {key: value.detach().cpu().contiguous() for key, value in self.model.state_dict().items()}
        head = {} if self.head is None else self.head.state_dict(prefix="head.")
        return state | {key: value.detach().cpu().contiguous() for key, value in head.items()}

    def how_to_load(self, file: Path) -> str:
        """Lines of Python with which plain transformers runs what `stock_state` gave, written to a file."""
        config: Any = self.model.config
        kind = "AutoModelForImageClassification" if self.head is None else "AutoModel"
        labels = f", num_labels={config.num_labels}" if self.head is None else ""
        lines = [
            f"config = transformers.AutoConfig.from_pretrained({self.source!r}{labels})",
            f"model, state = transformers.{kind}.from_config(config), safetensors.torch.load_file({str(file)!r})",
        ]
        if self.head is None:
            lines += ["model.load_state_dict(state)", "logits = model.eval()(pixel_values=x).logits"]
        else:
            lines += [
                'weight, bias = state.pop("head.weight"), state.pop("head.bias")', "model.load_state_dict(state)",
                "logits = torch.nn.functional.linear(model.eval()(pixel_values=x).pooler_output, weight, bias)",
            ]  # fmt: skip
        return "\n".join(f"  {line}" for line in lines)

    def forward(self, x: Tensor) -> Tensor:
        found: Any = self.model(pixel_values=x)
        return found.logits if self.head is None else self.head(found.pooler_output)


def is_of_transformers(spec: str) -> bool:
    """Whether a backbone is of transformers: `hf:…`, or a model folder (timm's and open_clip's have other words in theirs)."""
    return spec.startswith(HF) or "model_type" in _read(Path(spec).expanduser() / CONFIG)


def load_backbone(spec: str, num_classes: int | None, drop_path: float = 0.0) -> tuple[nn.Module, Backbone]:
    """A pretrained model with a new head of `num_classes` classes, without one where 0, or with its own where None, and what
    its image processor expects of pictures.

    Args:
        spec: `hf:` and `owner/model`, or a folder with config.json, model.safetensors and preprocessor_config.json.
        drop_path: the rate of the last block's stochastic depth; others than those that have one are told to do without.

    Raises:
        PeftError: no such folder, weights that cannot be reached or are a pickle, a model that is no image classifier's.
    """
    import transformers

    source = _source(spec.removeprefix(HF), spec)
    about = _describe(spec, source)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (ValueError, OSError, KeyError) as error:
        raise PeftError(f"transformers cannot read {spec}: {' '.join(str(error).split())[:300]}") from error
    if drop_path and isinstance(getattr(config, "drop_path_rate", None), float):
        config.drop_path_rate = drop_path
    elif drop_path:
        tell(f"note: {spec} has no stochastic depth, so that --drop_path {drop_path:g} does nothing")
    known = type(config) in transformers.AutoModelForImageClassification._model_mapping
    made: Any = transformers.AutoModelForImageClassification if known else transformers.AutoModel
    if num_classes is None and not known:
        raise PeftError(f"{spec} has no head of its own: choose a classifier, or a method that trains a head.")
    if known and num_classes:
        config.num_labels = num_classes
    model = _load(made, spec, source, config)
    anatomy = describe(model)
    takes = getattr(model, "main_input_name", None) == "pixel_values"
    if anatomy is None or not takes or getattr(anatomy.streams.get(None), "grid", ()) is None:
        raise PeftError(
            f"{spec} is a {type(model).__name__}, which is no model of pictures: choose an image classifier's backbone."
        )
    if num_classes == 0:
        return FromTransformers(getattr(model, str(model.base_model_prefix)) if known else model, source=source), about
    if num_classes is None or known:
        return FromTransformers(model, source=source), about
    width = getattr(config, "hidden_size", None)
    if width is None:
        raise PeftError(
            f"{spec} is a {type(model).__name__}, of whose features the width is not known: choose another."
        )
    return FromTransformers(model, new_head(width, num_classes), source), about


def _load(made: Any, spec: str, source: str, config: Any) -> nn.Module:
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # a new head is what was asked for
    logging.disable_progress_bar()
    options = dict(config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True)
    try:
        model, info = made.from_pretrained(source, **options)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise PeftError(f"transformers cannot load {spec}: {' '.join(str(error).split())[:300]}") from error
    finally:
        logging.set_verbosity(told)
    changed = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    if lost := sorted(key for key in (*info["missing_keys"], *changed) if not key.startswith(_NEW)):
        raise PeftError(
            f"the weights of {spec} do not fit a {type(model).__name__}: they have no {lost[0]}; give a checkpoint of it."
        )
    return model


def _source(where: str, spec: str) -> str:
    """The folder with the model's files, or its name on the hub where it can be reached."""
    folder = Path(where).expanduser()
    if folder.is_dir() or where.startswith(("./", "../", "/", "~")):
        if not (folder / CONFIG).is_file() or not list(folder.glob("*.safetensors")):
            raise PeftError(
                f"{folder} is no model folder: it needs {CONFIG} and {WEIGHTS}, as save_pretrained writes them."
            )
        return str(folder)
    cached = in_cache(where, CONFIG)
    if cached and (in_cache(where, WEIGHTS) or in_cache(where, f"{WEIGHTS}.index.json")):
        return str(Path(cached).parent)
    must_reach(spec, where)
    return where


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; {} where there is none."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise PeftError(f"{path} is damaged, no mapping: check the file.")
    return found


def _describe(spec: str, source: str) -> Backbone:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        for name in (CONFIG, LOOK):
            try:
                folder = Path(hf_hub_download(source, name)).parent
            except (HfHubHTTPError, OSError):
                continue
    look, config = _read(folder / LOOK), _read(folder / CONFIG)
    shorter = (look.get("size") or {}) if isinstance(look.get("size"), dict) else {"shortest_edge": look.get("size")}
    size, whole = _pair(look.get("crop_size") if look.get("do_center_crop", True) else None), _pair(shorter)
    size = size or whole or _pair(config.get("image_size")) or (224, 224)
    edge = shorter.get("shortest_edge") or (whole or size)[0]
    mean, std = (tuple(look.get(key) or _HALF) for key in ("image_mean", "image_std"))
    architecture = str((config.get("architectures") or [""])[0])
    return Backbone(spec, Path(source).name, architecture, size, mean, std, crop_pct=min(1.0, size[0] / edge))


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge")
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None
