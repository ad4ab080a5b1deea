"""ONNX files of finished runs."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from peft_core import PeftError
from peft_core.files import write_files
from peft_core.jobs.runs.use import Run, as_metadata


def needs_onnx() -> None:
    """Raises PeftError: a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise PeftError(f"export needs the package {error.name}: pip install 'visual-peft[onnx]'.") from error


def write_onnx(
    model: nn.Module, run: Run, target: Path, opset: int, output: str = "probability", sides: str = ""
) -> Path:
    """Writes a module from pictures `B 3 H W`, values from 0 to 1, to probabilities `B C` (or another `output`), any B, with its
    class names.

    Raises:
        PeftError: a package is missing, or the file cannot be written.
    """
    needs_onnx()
    height, width = run.fit.size
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX does not know the operator of nn.MultiheadAttention
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own
            program = torch.onnx.export(
                model.cpu().eval(), (torch.rand(2, 3, height, width),), input_names=["image"],
                output_names=[output], opset_version=opset, dynamo=True,
                dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}}, verbose=False,
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert program is not None
    program.model.metadata_props.update(as_metadata(run) | {"normalise": json.dumps("inside the graph")})
    write_files(target.parent, {target.name: program.model_proto.SerializeToString()})
    mean, std = (", ".join(f"{number:.4g}" for number in each) for each in (run.mean, run.std))
    print(
        f"{target}: image B 3 {height} {width} with values from 0 to 1 -> {output} B {len(run.class_names)}{sides}; "
        f"mean ({mean}) and std ({std}) are taken out inside, class names and crop stand in its metadata"
    )
    return target
