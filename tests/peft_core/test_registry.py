"""Names of methods: by file, by entry point, by decorator; a broken file breaks only itself."""

import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

import numpy
import pytest
import torch

from peft_core import PeftError, adapt, list_methods, load_adapter, registry, save_adapter
from peft_core.method import Method, Plan
from peft_core.registry import facts_of, find_method, make_method, method_files, register, snake_case
from tests.tiny import MODELS


@dataclass(frozen=True, kw_only=True)
class FirstBias(Method):
    """The first block's biases train."""

    def install(self, plan: Plan) -> None:
        for module, name in plan.stock_parameters():
            if name == "bias" and ".0." in module:
                plan.train(module, name)


@dataclass(frozen=True, kw_only=True)
class Unregistered(FirstBias):
    """As FirstBias."""


def test_names_come_from_files_without_an_import():
    script = (
        "import sys; from peft_core.registry import list_methods, method_files; list_methods(None); "
        "sys.exit(any(m == 'torch' or '.methods' in m for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert method_files()["lora"] == "peft_core.methods.reparameterized.lora" and "__init__" not in method_files()
    assert not set(list_methods()) & set(list_methods(grafts=False))
    for name, about in list_methods(None).items():
        cls = find_method(name)
        assert about == (cls.__doc__ or "").strip().splitlines()[0] and facts_of(name)["grafts"] == cls.grafts
        assert make_method(name).name == name if name not in ("lora_file", "textual_inversion") else True


def test_a_broken_file_breaks_only_itself(tmp_path, monkeypatch):
    broken, unreadable, several = tmp_path / "zz_broken.py", tmp_path / "zz_unreadable.py", tmp_path / "zz_several.py"
    broken.write_text("import a_library_that_is_missing\nclass ZzBroken:\n    'B.'\n", encoding="utf-8")
    unreadable.write_text("def (", encoding="utf-8")
    several.write_text(
        "from peft_core.method import Method\nclass Other(Method):\n    'O.'\nclass ZzSeveral(Method):\n    'S.'\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(registry._sources())
    known |= {file.stem: registry.Source(file.stem, file) for file in (broken, unreadable, several)}
    monkeypatch.setattr(registry, "_sources", lambda: known)
    assert set(list_methods(None)) >= {"zz_broken", "zz_unreadable", "lora", "zz_several"}
    assert "line 1" in list_methods(None)["zz_unreadable"]
    assert make_method("lora").name == "lora" and find_method("zz_several").__name__ == "ZzSeveral"
    for name, reason in (("zz_broken", "a_library_that_is_missing"), ("zz_unreadable", "SyntaxError")):
        with pytest.raises(PeftError, match=f'"{name}" cannot be imported from .*{reason}'):
            find_method(name)
    facts_of.cache_clear()


def test_unknown_names_offer_those_that_were_asked_for():
    with pytest.raises(PeftError, match=r'unknown method "lorra", did you mean "lora"\? \(known: lora, vpt\)'):
        find_method("lorra", ["vpt", "lora"])


def test_a_method_of_another_package_saves_and_loads(tmp_path, monkeypatch):
    tiny = MODELS["vit"]
    with pytest.raises(PeftError, match='entry point .* unregistered = "tests.peft_core.test_registry:Unregistered"'):
        save_adapter(adapt(tiny.model(), Unregistered()), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    entry = metadata.EntryPoint("first_bias", f"{__name__}:FirstBias", registry.GROUP)
    monkeypatch.setattr(registry, "_sources", lambda: {entry.name: registry.Source(__name__, None, "FirstBias")})
    model = adapt(tiny.model().eval(), FirstBias())
    assert next(iter(model.__dict__["_peft_record"].adaptations)) == "first_bias"
    with torch.no_grad():
        model.blocks[0].norm1.bias += 1
    save_adapter(model, tmp_path / "b")
    assert torch.equal(tiny(load_adapter(tiny.model().eval(), tmp_path / "b")), tiny(model))
    monkeypatch.setattr(registry, "_sources", dict)
    with pytest.raises(PeftError, match='unknown method "first_bias"'):
        load_adapter(tiny.model(), tmp_path / "b")


def test_entry_points_are_read_from_installed_packages(tmp_path, monkeypatch):
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: elsewhere\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[peft_core.methods]\nrows = elsewhere:Rows\n", encoding="utf-8")
    (tmp_path / "elsewhere.py").write_text(
        "from peft_core.method import Method\nclass Rows(Method):\n    'Rows of another package.'\n", encoding="utf-8"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from peft_core.registry import list_methods, make_method; "
        "print(list_methods()['rows'], 'elsewhere' in sys.modules, make_method('rows').name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "Rows of another package. False rows"


def test_a_class_is_registered_by_a_decorator(tmp_path):
    try:
        register(FirstBias)
        assert find_method("first_bias") is FirstBias and "first_bias" in list_methods()
        save_adapter(adapt(MODELS["vit"].model(), "first_bias"), tmp_path)
        load_adapter(MODELS["vit"].model(), tmp_path)
        taken = type("LoRA", (FirstBias,), {"__module__": __name__})
        with pytest.raises(PeftError, match='"lora" already'):
            register(taken)
    finally:
        registry._registered.clear()
        facts_of.cache_clear()
    assert [snake_case(name) for name in ("LoRA", "IA3", "RowScale", "VPT", "DiffFit")] == [
        "lora",
        "ia3",
        "row_scale",
        "vpt",
        "diff_fit",
    ]


def test_settings_are_judged_once_and_become_plain_numbers():
    blocks = [range(0, 2), [0, 1], (0, 1), numpy.arange(2), list(numpy.arange(2))]
    assert all(make_method("lora", blocks=given).blocks == (0, 1) for given in blocks)
    made = make_method("lora", rank=numpy.int64(4), alpha=numpy.float32(8))
    assert type(made.rank) is int and type(made.alpha) is float
    for setting, value in (
        ("blocks", 2), ("blocks", (0.5,)), ("blocks", (-1,)), ("rank", 0), ("rank", -3), ("rank", "8"), ("rank", 8.0),
        ("alpha", -3), ("alpha", float("nan")), ("dropout", 1.0), ("dropout", -0.1), ("rank", (1, -1)),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=f"lora: {setting} "):
            make_method("lora", **{setting: value})
    with pytest.raises(PeftError, match="blocks names block 3"):
        adapt(MODELS["vit"].model(), "lora", blocks=(3,))
