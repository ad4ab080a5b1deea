"""A quick start: Lightning without the libraries of metrics that no program here uses."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys

UNUSED = ("transformers", "scipy", "matplotlib", "torchvision", "torchaudio", "librosa", "nltk", "pesq", "onnxruntime")
own_process = False
"""Whether this process is a program's own, which may choose what of torchmetrics works in it; `main` says so."""


def leave_out_metrics() -> None:
    """Imports torchmetrics, which Lightning imports whole, so that it believes the libraries of its metrics of texts, sound
    and generated pictures to be missing: importing those takes longer than all else that a short run does. Does nothing
    in another program's process."""
    if not own_process or "torchmetrics" in sys.modules:
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):  # another torchmetrics: it starts as slowly as it does
        whole = importlib.util.find_spec("torchmetrics")
        name = "torchmetrics.utilities.imports"
        spec = importlib.util.spec_from_file_location(name, f"{whole.submodule_search_locations[0]}/utilities/imports.py")  # type: ignore
        flags = importlib.util.module_from_spec(spec)  # type: ignore
        spec.loader.exec_module(flags)  # type: ignore
        for flag in vars(flags).values():
            if str(getattr(flag, "requirement", None) or "").partition(">")[0] in UNUSED:
                flag.available, flag.message = False, f"{flag.requirement} is left out for a quick start"
        sys.modules[name] = flags
        hidden = [each for each in ("scipy",) if each not in sys.modules]
        sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
        try:
            importlib.import_module("torchmetrics")
        finally:
            for each in hidden:
                del sys.modules[each]
