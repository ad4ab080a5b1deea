"""What a sweep is asked to run, and what is said of a mistake."""

from __future__ import annotations

import pytest
from peft_data import world

from peft_core.errors import PeftError
from peft_core.jobs.sweep.jobs import expand_methods
from vision_peft.sweep.plan import expand_data, make_plan, suits_vision


def plan(grid: tuple = (), common: tuple = (), methods: tuple = ("linear", "lora", "vpt"), protocol: str = "honest"):
    return make_plan(["world/count", "digits"], methods, [0, 1], grid, common, "reference", protocol)


def test_patterns_stand_for_one_part_of_a_name_in_the_list_s_order(tmp_path) -> None:
    assert expand_data(["world/*"]) == tuple(f"world/{task}" for task in world.TASKS)
    assert len(expand_data(["vtab/*"])) == 19 and expand_data(["vtab/dsprites*", "digits"])[-1] == "digits"
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    assert expand_data([f"{tmp_path}/*"]) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert set(expand_methods(["*"], "vision", suits_vision)) >= {"linear", "lora", "vpt"}
    assert list(expand_methods(["vpt", "lora"], "vision", suits_vision)) == ["vpt", "lora"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["wrold/*"], 'no data set matches "wrold/*", did you mean "world/*"'),
        (["world/*", "world/cuont"], 'no data set and no folder "world/cuont", did you mean "world/count"'),
        ([], "a sweep needs data sets"),
    ],
)
def test_unknown_data(data: list[str], said: str) -> None:
    with pytest.raises(PeftError) as caught:
        expand_data(data)
    assert said in str(caught.value)


def test_a_grid_goes_to_the_methods_that_have_the_field() -> None:
    found = plan(("method.rank=4,8", "lr=1e-3,3e-3"), ("trainer.max_epochs=2", "vpt:method.tokens=5"))
    assert {label: len(points) for label, points in found.points.items()} == {"linear": 2, "lora": 4, "vpt": 2}
    assert found.points["lora"][1] == (("method.rank", "4"), ("lr", "3e-3"))
    choosing = list(found.choosing())
    assert (
        len(choosing) == 2 * 8 and {job.split for job in choosing} == {"val"} and {job.seed for job in choosing} == {0}
    )
    job = next(job for job in choosing if job.method == "vpt")
    assert job.settings["method"] == {"name": "vpt", "tokens": "5"} and job.settings["trainer"] == {"max_epochs": "2"}
    assert job.folder == "runs/world_count/vpt/lr=1e-3/val-seed0"


def test_a_choice_for_all_data_sets_is_made_on_those_that_are_named() -> None:
    tasks, methods = ["world/count", "digits", "world/cells"], ["linear", "lora"]
    found = make_plan(tasks, methods, [0], ["lora:lr=1e-3,3e-3"], [], "reference", "honest", ["world/road", "digits"])
    assert [str(job) for job in found.choosing()] == [
        f"{task} lora lr={rate} seed 0" for task in ("world/road", "digits") for rate in ("1e-3", "3e-3")
    ]
    for grid, protocol in (([], "honest"), (["lr=1e-3,3e-3"], "legacy")):
        with pytest.raises(PeftError, match="choose_on names the data sets"):
            make_plan(tasks, methods, [0], grid, [], "reference", protocol, ["digits"])


def test_final_runs_follow_the_choice_and_leave_out_what_could_not_be_chosen() -> None:
    found = plan(("method.rank=4,8",))
    jobs = list(found.final({("digits", "lora"): (("method.rank", "8"),)}, found.methods, found.seeds))
    assert [str(job) for job in jobs if job.method == "lora"] == [
        "digits lora method.rank=8 seed 0",
        "digits lora method.rank=8 seed 1",
    ]
    assert len(jobs) == 2 * 2 * 2 + 2 and {job.settings["eval_on"] for job in jobs} == {"test"}


def test_legacy_chooses_on_test() -> None:
    assert {job.split for job in plan(("lr=1,2",), protocol="legacy").choosing()} == {"test"}


def test_a_list_is_one_value() -> None:
    points = plan(("method.targets=[q,v],[q,k,v]",), methods=("lora",)).points["lora"]
    assert points == [(("method.targets", "[q,v]"),), (("method.targets", "[q,k,v]"),)]


def test_what_is_said_of_one_method_goes_over_what_is_said_of_all() -> None:
    found = plan(common=("vpt:lr=1e-2", "lr=5e-3"))
    assert found.common == {"linear": (("lr", "5e-3"),), "lora": (("lr", "5e-3"),), "vpt": (("lr", "1e-2"),)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": ("method.rnak=4,8",)}, 'none of linear, lora, vpt has "rnak", did you mean "method.rank"'),
        ({"grid": ("lrr=1,2",)}, 'unknown option "lrr" in --grid, did you mean "lr"'),
        ({"grid": ("seed=1,2",)}, "cannot set seed"),
        ({"grid": ("data.root=a,b",)}, "cannot set data.root"),
        ({"grid": ("lr",)}, "OPTION=VALUE"),
        ({"grid": ("lr=1,1",)}, "values that differ"),
        ({"grid": ("lr=1e-3,fast",)}, '--lr takes a number or find, not "fast"'),
        ({"grid": ("lroa:lr=1,2",)}, 'the sweep has no method "lroa", did you mean "lora"'),
        ({"common": ("trainer.max_epoch=2",)}, 'did you mean "trainer.max_epochs"'),
        ({"common": ("recipe=wrold",)}, 'did you mean "world"'),
        ({"methods": ("lroa",)}, 'unknown method "lroa", did you mean "lora"'),
        ({"methods": ("zz*",)}, 'no method matches "zz*"'),
    ],
)
def test_mistakes_are_told_before_anything_runs(options: dict, said: str) -> None:
    with pytest.raises(PeftError) as caught:
        plan(**options)
    assert said in str(caught.value)
