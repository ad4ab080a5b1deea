"""`app` of a program."""

from __future__ import annotations

from typing import Any

from peft_data.options import takes

from peft_core.jobs.app.parts import Part
from peft_core.jobs.cli.command import Command, command
from peft_core.jobs.cli.shared import serving


def page(domain: str, part: Part, about: str) -> Command:
    """The command that shows a program's page; `about` says what is done there."""

    def app(**common: Any) -> None:
        from peft_core.jobs.app.frame import serve  # with Gradio

        serve(part, common["runs"], common["port"], common["open"])

    app.__doc__ = f"Show a page in the browser, on this machine alone: {about}."
    return command(domain)(takes(serving)(app))
