"""What a protocol asks of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_peft.drawing.draw import Drawing


@dataclass(frozen=True)
class How:
    """What `evaluate` was asked for; a protocol reads what it has a use for.

    Args:
        labels: a name for each run's row of the table; its method's where None.
        prompts: with `{}` for the subject; the protocol's own where None.
        drift_prompts: of which no subject is a part; the protocol's own where None.
        subject, class_name: what runs call it, and what anybody does; from the runs' settings where None.
        count, seed: pictures a prompt, with seeds seed, seed + 1, …
        scales: of a scale sweep, ascending; none where empty.
        image_features, clip: names of models.
        drawing, dtype: how pictures are drawn.
    """

    labels: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    drift_prompts: tuple[str, ...] | None = None
    subject: str | None = None
    class_name: str | None = None
    count: int = 4
    seed: int = 0
    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    image_features: str | None = None
    clip: str | None = None
    drawing: Drawing = Drawing()
    dtype: str = "float32"


@dataclass
class Evaluation:
    """What a protocol found.

    Args:
        headline: one line.
        rows: a row a run (and a row for each thing that it is compared with), as in results.csv.
        summary: a row a method: means and standard deviations over runs.
        columns: (key, heading) of the summary's table.
        facts: what else stands in results.json: models that scored, prompts, ceilings and floors.
        sections: (heading, HTML) of the report, after the summary.
    """

    headline: str
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    columns: list[tuple[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)
    sections: list[tuple[str, str]] = field(default_factory=list)
