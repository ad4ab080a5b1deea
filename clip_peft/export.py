"""`clip_peft export | merge`: a run as plain files that need nothing of this package."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from clip_peft.learner import Learner, OpenVocabularyMethod, grafted
from clip_peft.text.prompts import asked_for
from clip_peft.training.features import frozen_image_tower
from peft_core import PeftError, dequantise, merge
from peft_core.files import read_json, write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.runs import onnx_file
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.runs.outputs import out_folder
from peft_core.jobs.runs.use import as_metadata
from peft_core.method import Method
from peft_core.values import Range

if TYPE_CHECKING:  # its import takes five seconds, and --help wants none of it
    from clip_peft.run import ClipRun

What = Literal["weights", "model", "onnx", "transformers"]
USUAL = ("weights", "model", "onnx")
MERGED = ("model", "transformers")


@command("clip")
def export(
    *,
    run: str,
    out: str,
    what: list[What] | None = None,
    format: Literal["all", "stock", "onnx"] = "all",
    classes: list[str] | None = None,
    opset: Annotated[int, Range(18)] = 18,
) -> Path:
    """Write class weights (weights.safetensors, classes.json), the merged open_clip model (a model folder) and model.onnx.

    Args:
        run: The run folder.
        out: The folder to write.
        what: weights, model, onnx, by default each of them that the method has; transformers, the merged model as a folder of
            transformers' CLIPModel.
        format: all, onnx, or stock: what plain open_clip loads, the merged model, else class weights for the stock features.
        classes: Names to make the weights and the ONNX file for; by default those it was trained on.
        opset: ONNX operator set.
    """
    folder = out_folder(out, run)
    loaded = load_run(run, ("clip_peft",))
    loaded = loaded.with_classes(asked_for(classes, alone=loaded.alone)) if classes else loaded
    if loaded.places is not None:
        raise PeftError(f"{loaded.model.method.name} exports the classes it was trained on: leave --classes out.")
    if not loaded.class_names and not what and format == "all":
        what = ["model"]  # there is nothing else to a run that names no classes
    reasons = {kind: reason for kind in (*USUAL, *(what or ())) if (reason := why_not(loaded, kind))}
    if format != "all":
        what = ["onnx"] if format == "onnx" else ["weights" if "model" in reasons else "model"]
    if not what and len(reasons) == 3:
        raise PeftError(reasons["weights"])
    for kind in what or ():
        if kind in reasons:
            raise PeftError(reasons[kind])
    writers = {"weights": write_weights, "model": write_model, "onnx": write_onnx, "transformers": write_transformers}
    for kind in what or [kind for kind in USUAL if kind not in reasons]:
        writers[kind](loaded, folder, opset)
    for reason in [] if what else reasons.values():
        print(f"left out: {reason}")
    return folder


@command("clip")
def merge_(*, run: str, out: str) -> Path:
    """Write the adapter into the model's weights: a folder that plain open_clip loads.

    Args:
        run: The run folder.
        out: The folder to write.
    """
    return export(run=run, out=out, what=["model"])


def why_not(run: ClipRun, kind: str) -> str | None:
    """Why a run cannot be exported as that; None where it can."""
    method: Method = run.whole.method
    name, beside = method.name, method if isinstance(method, OpenVocabularyMethod) else None
    if kind not in MERGED and not run.class_names:
        return "this run learnt pairs and has no classes: name some with --classes, or export the model."
    inside = grafted(method)
    if kind in MERGED:
        if not inside and not (beside and beside.merges):
            others = " or ".join(each for each in ("weights", "onnx") if not why_not(run, each))
            instead = f"export {others}" if others else "use `predict`"
            return f"{name} learns beside the model, whose weights stay the stock ones: {instead}."
        for each in inside:
            if each.not_mergeable:
                return f"{name} cannot be merged into the model, because {each.not_mergeable.rstrip('.')}: export onnx."
        return None
    if beside and beside.no_class_weights and (kind == "weights" or beside.of_pictures):
        instead = "use `predict`" if beside.of_pictures else "export onnx"
        return f"{name} has no class weights, because {beside.no_class_weights}: {instead}."
    return None


def write_weights(run: ClipRun, folder: Path, opset: int) -> None:
    whole: Any = run.model
    weights = whole.class_weights().float().cpu().contiguous()
    scale = whole.learner.clip.scale.detach().float().cpu().reshape(1)
    if frozen_image_tower(whole):
        of = "the stock model"
    else:
        inside = grafted(whole.method)
        own = whole.learner.encodes_as_model or type(whole.learner).encode is Learner.encode
        merged = own and bool(inside) and not any(each.not_mergeable for each in inside)
        of = "the merged model (merge)" if merged else "this run's image tower (model.onnx)"
    about = {"class_names": run.class_names, "backbone": run.config["backbone"], "image_features": of,
             "use": "softmax(logit_scale * normalise(image_features) @ weights.T)"}  # fmt: skip
    files = {"weights.safetensors": save({"weights": weights, "logit_scale": scale})}
    write_files(folder, files | {"classes.json": (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()})
    print(f"{folder}/weights.safetensors: weights {tuple(weights.shape)} for normalised image features of {of}")


def merged_model(run: ClipRun) -> Any:
    """The run's model with what was learnt in its weights."""
    whole = run.whole
    if not grafted(whole.method):
        whole.learner.write_into(whole.model)
    elif "_peft_record" in whole.model.__dict__:
        merge(dequantise(whole.model))
    return whole.model


def write_transformers(run: ClipRun, folder: Path, opset: int) -> None:
    from clip_peft.as_transformers import clip_model_files

    look = {"mean": run.mean, "std": run.std, "size": run.fit.size, "resize": run.fit.mode,
            "interpolation": run.fit.interpolation}  # fmt: skip
    write_files(folder, clip_model_files(merged_model(run), run.whole.learner.clip.tokenizer, look))
    print(f'{folder}/model.safetensors: the merged weights for transformers: CLIPModel.from_pretrained("{folder}")')


def write_model(run: ClipRun, folder: Path, opset: int) -> None:
    model: Any = merged_model(run)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    files = {"open_clip_model.safetensors": save(_unshared(state), as_metadata(run))}
    config = model_config(run)
    if config is not None:
        files["open_clip_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    write_files(folder, files)
    how = f'open_clip.create_model("local-dir:{folder}")' if config else "load_state_dict of the same architecture"
    print(f"{folder}/open_clip_model.safetensors: the merged weights; plain open_clip loads them: {how}")


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with others, which safetensors does not write."""
    seen: set[int] = set()
    return {
        key: value.clone() if value.data_ptr() in seen or seen.add(value.data_ptr()) else value
        for key, value in state.items()
    }


def model_config(run: ClipRun) -> dict[str, Any] | None:
    """What stands in open_clip_config.json; None where the architecture has no config of that form."""
    import open_clip

    from peft_core.jobs.hub.references import REFERENCE, reference_of

    backbone, visual = run.config["backbone"], run.model.model.visual  # type: ignore[union-attr]
    folder = reference_of("clip_peft").FOLDER if backbone == REFERENCE else Path(backbone)
    path = folder / "open_clip_config.json"
    if path.is_file():
        return read_json(path)
    config = open_clip.get_model_config(backbone.partition("@")[0].partition("/")[0])
    if config is None:
        return None
    tag = open_clip.get_pretrained_cfg(*backbone.split("/", 1)) if backbone.count("/") == 1 else {}
    config |= {"quick_gelu": True} if tag.get("quick_gelu") else {}
    return {"model_cfg": config, "preprocess_cfg": dict(getattr(visual, "preprocess_cfg", None) or {})}


class Deployed(nn.Module):
    """Probabilities `B C` of pictures `B 3 H W` with values from 0 to 1: normalisation, class weights and softmax are
    inside."""

    mean: Tensor
    std: Tensor
    weights: Tensor

    def __init__(self, run: ClipRun) -> None:
        super().__init__()
        self.whole, self.finished = (whole := run.whole), run.task.finished
        self.register_buffer("mean", torch.tensor(run.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(run.std).view(1, 3, 1, 1))
        self.register_buffer("weights", whole.class_weights().clone())

    def forward(self, image: Tensor) -> Tensor:
        features = self.whole.encode((image - self.mean) / self.std)
        return self.finished(self.whole.logits(features, self.weights))


def write_onnx(run: ClipRun, folder: Path, opset: int) -> None:
    onnx_file.needs_onnx()
    with contextlib.suppress(PeftError):  # then the graph holds the adapter beside the model
        merge(dequantise(run.model.model))  # type: ignore[arg-type]
    onnx_file.write_onnx(Deployed(run), run, folder / "model.onnx", opset)
