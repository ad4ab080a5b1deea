"""Results of other code are never taken for a sweep's own."""

import importlib
import json
from pathlib import Path

import pytest

from peft_core import PeftError
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.outcome import trained

OF_ADAPTER = ("vision_peft.job", "peft_core.methods.adapters.adapter")


OTHERS = (
    "peft_core.method", "peft_core.anatomies.timm_vit", "peft_data.augment", "peft_core.methods.adapters.adapter",
    "peft_core.jobs.runs.learning", "vision_peft.classify",
)  # fmt: skip


@pytest.mark.parametrize(
    "module", ["peft_core.parts.bottleneck", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_file_that_a_run_imports_counts(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, before = Path(str(importlib.import_module(module).__file__)), code_hash(*OF_ADAPTER)
    real = Path.read_text

    def changed(text: str):
        def read(self: Path, *args, **more) -> str:
            return real(self, *args, **more) + (text if self == file else "")

        return read

    for text, same in (("\n# a comment\n", True), ("\nANOTHER = 1\n", False)):
        monkeypatch.setattr(Path, "read_text", changed(text))
        for cached in ("_dumped", "_tree"):
            getattr(importlib.import_module("peft_core.jobs.sweep.code"), cached).cache_clear()
        assert (code_hash(*OF_ADAPTER) == before) is same
    importlib.import_module("peft_core.jobs.sweep.code")._dumped.cache_clear()


def test_other_methods_and_programs_do_not_count() -> None:
    assert code_hash(*OF_ADAPTER) != code_hash("vision_peft.job", "peft_core.methods.reparameterized.lora")
    from peft_core.jobs.sweep.code import _imported

    found = _imported(OF_ADAPTER)
    assert "peft_core.parts.bottleneck" in found and not any(name.startswith("clip_peft") for name in found)
    assert "peft_core.methods.reparameterized.lora" not in found


def test_a_run_of_other_code_is_made_again(tmp_path: Path) -> None:
    calls = []

    def fit(**settings) -> dict:
        run = Path(settings["out"])
        calls.append((run / "results.json").is_file())
        run.mkdir(exist_ok=True)
        for name in ("config.yaml", "results.json"):
            (run / name).write_text("{}", encoding="utf-8")
        return {}

    settings = {"out": str(tmp_path / "run")}
    trained(fit, settings, False, "one")
    trained(fit, settings, False, "one")
    with pytest.raises(PeftError, match="was made by other code"):
        trained(fit, settings, False, "two")
    trained(fit, settings, True, "two")
    assert calls == [False, True, False]
    assert json.loads((tmp_path / "run.stamp").read_text(encoding="utf-8")) == {"code": "two"}
