"""Plots and the self-contained report.html of a run folder, the same for all programs."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}p.lead{font-size:1.1rem;margin-top:0}
table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #e3e6ea}
pre{overflow-x:auto;background:#f4f6f8;padding:.6rem .8rem}ul{padding-left:1.2rem}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.8rem}
.grid.wide{grid-template-columns:repeat(auto-fill,minmax(24rem,1fr))}
.grid figure{margin:0;border-top:4px solid #3a7d5d;font-size:.8rem;overflow-wrap:anywhere}
.grid figure.wrong{border-color:#b5402f}.grid img{width:100%;image-rendering:auto;display:block}
"""


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV with a header; a column that a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def page(title: str, lead: str, sections: Iterable[tuple[str, str]]) -> bytes:
    """A page that needs no other file: sections of (heading, HTML)."""
    parts = [f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>\n' + "\n".join(parts) + "</html>\n"
    ).encode(errors="backslashreplace")


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Rows as HTML, numbers grouped by thousands; under a header they stand to the right."""
    kind = ' class="n"' if header else ""

    def cell(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"<td>{html.escape(str(value))}</td>"
        return f"<td{kind}>{value:,}</td>" if isinstance(value, int) else f"<td{kind}>{value:,.4g}</td>"

    head = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>" if header else ""
    return "<table>" + head + "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows) + "</table>"


def each_class(parts: Mapping[str, Mapping[str, float | None]], header: Sequence[str]) -> str:
    """What `scores.by_name` says as a table, a dash where a class has no such figure."""
    rows = [[name, *("–" if value is None else value for value in each.values())] for name, each in parts.items()]
    return table(rows, header)


def figure(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def picture_grid(pictures: Iterable[tuple[Any, str, bool]], wide: bool = False) -> str:
    """(PIL image, caption, whether it is wrong), side by side; `wide` for strips of frames."""
    cells = []
    for picture, caption, wrong in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        kind = ' class="wrong"' if wrong else ""
        image = figure(buffer.getvalue(), caption)
        cells.append(f"<figure{kind}>{image}<figcaption>{html.escape(caption)}</figcaption></figure>")
    return f'<div class="{"grid wide" if wide else "grid"}">{"".join(cells)}</div>'


def list_of(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(each)}</li>" for each in sentences) + "</ul>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
