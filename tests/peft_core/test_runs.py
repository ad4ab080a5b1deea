"""The run folder."""

import json
import os
from pathlib import Path

import pytest
import yaml

import peft_core
from peft_core import PeftError
from peft_core.jobs.reports.page import csv_bytes, page, table
from peft_core.jobs.reports.plots import confusion, curves
from peft_core.jobs.runs.folder import NoNumbers, RunFolder, read_run_config, run_name, run_once
from peft_core.jobs.runs.process import is_first_process

CONFIG = {"lr": 1e-6, "method": {"name": "lora", "targets": ("q", "v")}, "out": "x", "overwrite": False}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run", "vision_peft fit")
    run.begin(CONFIG)
    return run


def test_new_started_finished(folder: RunFolder, tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "other", "vision_peft fit").check(CONFIG) == "new"
    assert folder.check(CONFIG) == "new"
    (folder.path / "last.ckpt").touch()
    assert folder.check(CONFIG) == "started"
    folder.write_results({"accuracy": 0.5})
    assert folder.check(CONFIG | {"out": "moved"}) == "finished" and folder.results() == {"accuracy": 0.5}
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["command"] == "vision_peft fit"


def test_another_run(folder: RunFolder) -> None:
    other = CONFIG | {"lr": 0.1, "method": {"name": "vpt"}}
    assert folder.check(other) == "new"  # nothing was trained yet, so nothing would be lost
    (folder.path / "last.ckpt").touch()
    with pytest.raises(
        PeftError, match="holds another run .lr is 1e-06 there, 0.1 here, method.name is lora there, vpt here"
    ):
        folder.check(other)
    assert folder.check(other, overwrite=True) == "new"
    assert (folder.path / "last.ckpt").exists()  # checking changes nothing
    (folder.path / "mine.txt").touch()
    folder.begin(other, overwrite=True)
    assert sorted(os.listdir(folder.path)) == ["config.yaml", "mine.txt"]
    assert folder.check(other) == "new"


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PeftError, match="is a file"):
        RunFolder(tmp_path / "file", "p").check(CONFIG)
    with pytest.raises(PeftError, match="holds files that are no run's"):
        RunFolder(tmp_path, "p").check(CONFIG, overwrite=True)
    for made, sentence in ((lambda f: None, "there is no run folder"), (lambda f: f.mkdir(), "has no config.yaml"),
                           (lambda f: (f / "config.yaml").write_text("lr: 1"), "has no line `command:`"),
                           (lambda f: (f / "config.yaml").write_text("lr: ["), "is damaged"),
                           (lambda f: (f / "config.yaml").write_text("command: rm -r"), "was made by rm")):  # fmt: skip
        made(tmp_path / "run")
        with pytest.raises(PeftError, match=sentence):
            peft_core.load_run(tmp_path / "run")
    assert read_run_config(tmp_path / "run") == {"command": "rm -r"}


def test_what_a_killed_writer_leaves_is_no_use_of_the_folder(tmp_path: Path) -> None:
    folder, left = RunFolder(tmp_path / "run", "p"), tmp_path / "run" / ".config.yaml.4242"
    folder.path.mkdir()
    left.write_text("comm")
    assert folder.check(CONFIG) == "new" and left.exists()
    folder.begin(CONFIG)
    assert os.listdir(folder.path) == ["config.yaml"]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    RunFolder(tmp_path / "run", "p").begin(CONFIG)
    assert not (tmp_path / "run").exists()


def test_full_disk_keeps_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_results({"accuracy": 0.5})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PeftError, match="No space left on device"):
        folder.write_results({"accuracy": 0.9})
    assert json.loads((folder.path / "results.json").read_text()) == {"accuracy": 0.5}
    assert sorted(os.listdir(folder.path)) == ["config.yaml", "results.json"]


def test_report_parts() -> None:
    assert csv_bytes([{"a": 1}, {"b": "x,y"}]) == b'a,b\n1,\n,"x,y"\n'
    shown = table([("<b>", 1234)], ["name", "n"])
    assert "<td>&lt;b&gt;</td>" in shown and '<td class="n">1,234</td>' in shown
    text = page("A < B", "lead", [("Part", "<p>")]).decode()
    assert "<title>A &lt; B</title>" in text and "http" not in text
    history = [{"step": 1, "lr": 0.1, "loss": 2.0}, {"step": 2, "accuracy": 0.5}, {"step": 2, "lr": 0.1, "loss": 1.0}]
    assert curves(history).startswith(b"\x89PNG") and curves(history) == curves(history)
    assert confusion([[2, 0], [1, 0]], ["a", "b" * 40]).startswith(b"\x89PNG")
    assert confusion([[0] * 70] * 70, ["c"] * 70).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"RANK": "9", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "16"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"JSM_NAMESPACE_RANK": "2"}, False),
        ({"LOCAL_RANK": ""}, True),
    ],
)
def test_the_first_process(variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_settings_that_are_newer_than_the_run(folder: RunFolder) -> None:
    folder.write_results({"accuracy": 0.5})
    newer = CONFIG | {"epochs": 0, "method": CONFIG["method"] | {"start": "zero"}}
    defaults = {"epochs": 0, "method.start": "zero"}
    assert RunFolder(folder.path, folder.program, defaults).check(newer) == "finished"
    with pytest.raises(PeftError, match="epochs is 0 there, 3 here"):
        RunFolder(folder.path, folder.program, defaults).check(newer | {"epochs": 3})


def once(folder: RunFolder, work, fingerprint: str | None = None, **settings) -> dict:
    given = {"lr": 1.0, "overwrite": False} | settings
    return run_once(
        folder, given, work, lambda results: "done", found=[("data", "3 pictures")], fingerprint=fingerprint
    )


def test_data_that_changed_since(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = RunFolder(tmp_path / "my run", "vision_peft fit")

    def work(config: dict) -> dict:
        folder.begin(config)
        folder.write_results({"accuracy": 1.0})
        return {"accuracy": 1.0}

    once(folder, work, "one")
    assert capsys.readouterr().err == f"data       3 pictures\nwrites     {folder.path}\n"
    once(folder, work, "one")
    assert "is finished already" in capsys.readouterr().out
    with pytest.raises(PeftError, match="its data have changed since then: give another --out, or --overwrite"):
        once(folder, work, "two")
    once(folder, work, None)  # where it cannot be known
    assert f"--config '{folder.path}/config.yaml'" in (folder.path / "config.yaml").read_text(encoding="utf-8")


def test_what_fails_at_first_does_not_keep_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "vision_peft fit")

    def diverge(config: dict) -> dict:
        folder.begin(config)
        (folder.path / "last.ckpt").touch()
        raise NoNumbers("outputs are no numbers")

    with pytest.raises(NoNumbers):
        once(folder, diverge, lr=1e30)
    assert once(folder, lambda config: {"accuracy": folder.check(config)}, lr=1e-3) == {"accuracy": "new"}


def test_being_stopped_says_whether_there_is_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "vision_peft fit")

    def stop(config: dict) -> dict:
        folder.begin(config)
        raise KeyboardInterrupt

    def stop_later(config: dict) -> dict:
        (folder.path / "last.ckpt").touch()
        raise KeyboardInterrupt(143)

    for work, said in ((stop, (130, "no checkpoint was written yet")),
                       (stop_later, (143, "the same command goes on from the last checkpoint"))):  # fmt: skip
        with pytest.raises(KeyboardInterrupt) as caught:
            once(folder, work)
        assert caught.value.args == said


def test_names_that_cannot_be_written_are_told_before_work(tmp_path: Path) -> None:
    with pytest.raises(PeftError, match="is no UTF-8 text, so it cannot be written down"):
        once(RunFolder(tmp_path / "run", "p"), lambda config: pytest.fail("work began"), data="cr\udce8me")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_results_and_configs(folder: RunFolder, content: bytes) -> None:
    (folder.path / "results.json").write_bytes(content)
    with pytest.raises(PeftError, match="results.json (is|holds)"):
        folder.results()
    (folder.path / "config.yaml").write_bytes(content)
    with pytest.raises(PeftError, match="config.yaml"):
        read_run_config(folder.path)


def test_the_folder_of_a_run_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My Photos").mkdir()
    monkeypatch.chdir(tmp_path / "My Photos")
    assert run_name(".", "reference", "lora") == "runs/My Photos-reference-lora"
    assert run_name("../My Photos/", "a/b") == "runs/My Photos-a_b" and run_name("vtab/dtd") == "runs/vtab_dtd"
