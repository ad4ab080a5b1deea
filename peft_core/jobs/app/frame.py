"""The page itself, of Gradio's parts."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from peft_core.errors import PeftError
from peft_core.jobs.app.parts import Field, Part
from peft_core.jobs.app.runs import Loaded, Training, about, command_words, curve, finished
from peft_core.jobs.reports import plots

WORDS = {"nothing": "Nothing is training.", "training": "Training …", "done": "Done.", "stopped": "Stopped; the same settings go "
         "on from the last checkpoint.", "failed": "It did not go: the last line below says why."}  # fmt: skip


def needs_gradio() -> Any:
    """Gradio.

    Raises:
        PeftError: it is missing.
    """
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise PeftError(f"app needs the package {error.name}: pip install 'visual-peft[app]'.") from error
    return gradio


def told(work: Callable) -> Callable:
    """Mistakes as a sentence on the page."""

    @functools.wraps(work)
    def wrapped(*values: Any) -> Any:
        from peft_data.errors import DataError

        try:
            return work(*values)
        except (PeftError, DataError) as error:
            raise needs_gradio().Error(str(error), duration=None, print_exception=False) from error

    return wrapped


class Page:
    """What a page does; `build` makes it visible."""

    def __init__(self, part: Part, root: Path) -> None:
        self.part, self.root = part, root
        self.loaded, self.training = Loaded(part.program), Training(part.module, root)

    def names(self) -> list[str]:
        return finished(self.root, self.part.program)

    def about(self, name: str | None) -> str:
        """The line under the chosen run."""
        return about(self.root / name) if name else f"There is no finished run in {self.root} yet: train one."

    def use(self, name: str | None, pictures: Sequence[str] | None, *values: Any) -> tuple[list, dict[str, Any]]:
        if not name:
            raise PeftError(f"there is no finished run in {self.root} yet: train one first.")
        if self.part.takes_pictures and not pictures:
            raise PeftError("drop a picture first.")
        given = {field.option: value for field, value in zip(self.part.use_fields, values, strict=True)}
        shown = self.part.use(self.loaded.get(self.root / name), list(pictures or ()), given)
        return shown.pictures, {"headers": shown.columns, "data": shown.rows}

    def start(self, name: str, *values: Any) -> str:
        options = {field.option: value for field, value in zip(self.part.fit_fields, values, strict=True)}
        return command_words(self.part.program, self.training.start(name, options))

    def watch(self) -> tuple[str, str, str, list[tuple[float, float]], str | None]:
        """State in words, what was said, what the curve counts, its points, and the report of a run that is done."""
        state, said = self.training.state(), self.training.said()
        report = self.training.folder / "report.html" if state == "done" and self.training.folder else None
        return WORDS[state], said, *curve(said), str(report) if report is not None and report.is_file() else None


def build(page: Page) -> Any:
    """The page as Gradio's Blocks."""
    gr = needs_gradio()
    part, root = page.part, page.root

    def choose() -> Any:
        names = page.names()
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    def look() -> tuple[Any, ...]:
        words, said, what, points, report = page.watch()
        drawn = Image.open(io.BytesIO(plots.so_far(what, points))) if points else None
        return words, said, drawn, gr.File(report, visible=report is not None)

    def begin(*values: Any) -> tuple[Any, ...]:
        return told(page.start)(*values), *look(), gr.Timer(active=True)

    def tick() -> tuple[Any, ...]:
        return *look(), gr.Timer(active=page.training.state() == "training")

    with gr.Blocks(title=part.program, analytics_enabled=False) as demo:
        gr.Markdown(f"# {part.program}\n{part.about}")
        with gr.Tab("Use a run") as use_tab:
            with gr.Row():
                with gr.Column():
                    run = gr.Dropdown(choices=[], label=f"Finished runs in {root}", elem_id="run")
                    line = gr.Markdown(elem_id="about")
                    pictures = gr.File(
                        file_count="multiple", file_types=["image"], label="Pictures: drop them here", height=150,
                        visible=part.takes_pictures, elem_id="pictures",
                    )  # fmt: skip
                    fields = [_field(gr, each) for each in part.use_fields]
                    go = gr.Button(part.verb, variant="primary", elem_id="use")
                with gr.Column():
                    gallery = gr.Gallery(
                        show_label=False, columns=4, height="auto", object_fit="contain", elem_id="result"
                    )
                    table = gr.Dataframe(interactive=False, wrap=True, show_label=False, elem_id="table")
        with gr.Tab("Train") as train_tab:
            with gr.Row():
                with gr.Column():
                    name = gr.Textbox("first", label=f"Name of the run, a folder in {root}", elem_id="name")
                    settings = [_field(gr, each) for each in part.fit_fields]
                    with gr.Row():
                        begin_button = gr.Button("Train", variant="primary", elem_id="train")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Column():
                    state = gr.Markdown(WORDS["nothing"], elem_id="state")
                    plot = gr.Image(show_label=False, interactive=False, buttons=[], height=300, elem_id="curve")
                    same = gr.Textbox(label="The same on a command line", lines=2, elem_id="same")
                    log = gr.Textbox(label="What it says", lines=8, max_lines=16, elem_id="log")
                    report = gr.File(label="Its report", visible=False, elem_id="report")
        timer = gr.Timer(2.0, active=False)
        seen = [state, log, plot, report]
        demo.load(choose, outputs=run).then(page.about, run, line)
        demo.load(tick, outputs=[*seen, timer])
        use_tab.select(choose, outputs=run)
        run.change(told(page.about), run, line)
        go.click(told(page.use), [run, pictures, *fields], [gallery, table])
        begin_button.click(begin, [name, *settings], [same, *seen, timer])
        stop.click(page.training.stop)
        train_tab.select(tick, outputs=[*seen, timer])
        timer.tick(tick, outputs=[*seen, timer])
    return demo


def _field(gr: Any, field: Field) -> Any:
    shared = {"label": field.label, "info": field.info or None, "elem_id": f"field-{field.option.replace('.', '-')}"}
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), value=field.value, allow_custom_value=True, **shared)
    if field.number:
        return gr.Number(value=field.value, **shared)
    return gr.Textbox(value=field.value or "", **shared)


def serve(part: Part, runs: str, port: int, open_: bool) -> None:
    """Serves the page on this machine until it is stopped."""
    root = Path(runs).expanduser()
    if root.exists() and not root.is_dir():
        raise PeftError(f"{root} is a file: give --runs a folder.")
    gr = needs_gradio()
    page = Page(part, root)
    demo = build(page)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    print(f"http://127.0.0.1:{port} shows the page, on this machine alone; Ctrl-C ends it", flush=True)
    try:
        demo.launch(
            server_name="127.0.0.1", server_port=port, inbrowser=open_, share=False, quiet=True, theme=theme,
            ssr_mode=False, footer_links=[], allowed_paths=[str(root.absolute())],
            css="#log textarea{font-family:monospace;font-size:.8rem;white-space:pre;overflow-x:auto}",
        )  # fmt: skip
    except OSError as error:
        raise PeftError(f"port {port} is taken: give another --port.") from error
    finally:
        page.training.stop()
