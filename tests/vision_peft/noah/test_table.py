"""The comparison's table: means and spreads, and gains paired by task and seed."""

from benchmarks.noah_table import COLUMNS, gain, spread, table


def test_table_of_two_tasks() -> None:
    found = [
        {"task": task, "seed": seed, "what": what, "accuracy": accuracy + seed / 100, "inserted": 100}
        for task, base in (("world/a", 0.5), ("world/b", 0.7))
        for seed in (0, 1)
        for what, accuracy in {"noah": base, "random": base - 0.1, "uniform_lora": base + 0.02}.items()
    ]
    lines = table(found, ["world/a", "world/b", "world/c"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "seeds", *COLUMNS] and len(lines) == 6  # world/c has no run
    assert cells[2][:4] == ["world/a", "2", "50.5 ± 0.7", "40.5 ± 0.7"] and cells[2][5] == "–"
    assert cells[4][2] == "100" and cells[5][3:5] == ["+10.0 ± 0.0 (4/4)", "-2.0 ± 0.0 (0/4)"]
    assert spread([50.0]) == "50.0" and gain([]) == "–" and gain([1.5]) == "+1.5"
