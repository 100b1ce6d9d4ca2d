"""One HTML page that needs nothing beside it: tables that sort, parts that fold, pictures and curves inlined.

Curves are drawn by Plotly, whose script is part of the page: an extra, since it alone is 5 MB.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kssm_mlx.errors import ConfigError
from kssm_mlx.terminal import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fff; --line: #d5dae0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #16191d; --line: #3e4c59; }
}
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem;
}
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line);
}
th button {
  font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: left;
}
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.chart { width: 100%; height: 26rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.value { white-space: nowrap; }
@media (max-width: 40rem) {
  td:first-child { min-width: 7rem; }
  .picture { overflow-x: auto; }
  .picture img { max-width: none; width: 40rem; }
}
@media print { body { max-width: none; } th button::after { content: "" !important; } }
"""

MEASURED = re.compile(r"[-+]?[\d.,]+( ± [\d.]+)?|\[[-+\d., ]+\]")  # a number, its error, an interval

SCRIPT = """
const number = text => parseFloat(text.replace(/[^0-9.eE+-]/g, ''));
for (const button of document.querySelectorAll('th button')) button.addEventListener('click', () => {
  const th = button.parentElement, row = th.parentElement, body = th.closest('table').tBodies[0];
  const column = [...row.children].indexOf(th), up = th.getAttribute('aria-sort') !== 'ascending';
  for (const other of row.children) other.removeAttribute('aria-sort');
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = tr => tr.children[column].textContent.trim();
  const rows = [...body.rows], numeric = rows.every(tr => key(tr) === '' || /^[-+\\d[]/.test(key(tr)));
  const value = tr => number(key(tr)) || 0;
  const compare = (a, b) => numeric ? value(a) - value(b) : key(a).localeCompare(key(b));
  rows.sort((a, b) => up ? compare(a, b) : compare(b, a)).forEach(tr => body.append(tr));
});
"""


# Axes and words in the colours of the page, which change with those of the reader's system; what is folded is
# printed too.
CURVES = """
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colours = layout => {
  const found = { 'font.color': style('--ink') };
  for (const key of Object.keys(layout)) if (/^[xy]axis\\d*$/.test(key)) {
    found[`${key}.gridcolor`] = found[`${key}.linecolor`] = found[`${key}.zerolinecolor`] = style('--line');
  }
  return found;
};
const charts = JSON.parse(document.getElementById('charts').textContent);
for (const { id, data, layout } of charts) {
  const common = { paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', hovermode: 'x unified' };
  const font = { family: 'system-ui, sans-serif', color: style('--ink') };
  Plotly.newPlot(id, data, { ...common, ...layout, font }, { responsive: true, displayModeBar: false })
    .then(() => Plotly.relayout(id, colours(layout)));
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const { id, layout } of charts) Plotly.relayout(id, colours(layout));
});
"""
UNFOLD = """
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(d => { d.open = true; }));
"""


@dataclass(frozen=True)
class Chart:
    """Curves as Plotly has them: data and layout are its JSON."""

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


def write_page(sections: Sequence[Any], pictures: Sequence[Path], title: str) -> str:
    """The page of an experiment. sections: `reports.experiment.Section`s; pictures follow the one of arms."""
    parts = []
    for section in sections:
        if section.title:
            parts.append(heading(section.title))
        parts += map(paragraph, section.paragraphs)
        if section.table:
            parts.append(table(*section.table))
        if section.title == "Arms":
            parts += map(picture, pictures)
    return document(title, parts)


def document(title: str, parts: Iterable[str | Chart]) -> str:
    """The page of a title and of what stands below it.

    Raises: ConfigError for curves where Plotly is not installed.
    """
    written, charts = [f"<h1>{_text(title)}</h1>"], []
    for part in parts:
        if isinstance(part, Chart):
            charts.append({"id": f"chart{len(charts)}", "data": part.data, "layout": part.layout})
            written.append(f'<div class="chart" id="{charts[-1]["id"]}"></div>')
        else:
            written.append(part)
    body = "\n".join(written)
    scripts = f"<script>{SCRIPT}{UNFOLD}</script>\n" + (_curves(charts) if charts else "")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n{scripts}</body></html>\n"
    )


def require_plotly() -> None:
    """Raises: ConfigError where Plotly is not installed."""
    try:
        import plotly.offline  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--html draws with Plotly, which is not installed; pip install 'kssm-mlx[html]', or leave it out"
        ) from None


def _curves(charts: list[dict[str, Any]]) -> str:
    require_plotly()
    from plotly.offline import get_plotlyjs

    # "</script>" in a label would end the script that it is part of.
    data = json.dumps(_drop_nan(charts), allow_nan=False).replace("</", "<\\/")
    return (
        f'<script type="application/json" id="charts">{data}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{CURVES}</script>\n"
    )


def _drop_nan(value: Any) -> Any:
    """JSON has no NaN: where a curve has none, it has a gap."""
    if isinstance(value, Mapping):
        return {key: _drop_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_drop_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def heading(text: str) -> str:
    return f"<h2>{_text(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def verbatim(text: str) -> str:
    return f"<pre>{_text(text)}</pre>"


def fold(summary: str, *parts: str, open: bool = False) -> str:
    """Parts below a line that shows and hides them."""
    body = "\n".join(parts)
    return f"<details{' open' if open else ''}><summary>{_text(summary)}</summary>\n{body}\n</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns that sort by a click on their head."""
    heads = "".join(f"<th><button type=button>{_text(name)}</button></th>" for name in header)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def _cell(value: Any) -> str:
    """A number with its error is not broken into two lines."""
    kind = " class=value" if MEASURED.fullmatch(str(value)) else ""
    return f"<td{kind}>{_text(value)}</td>"


def picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p class="picture"><img alt="{_text(path.stem)}" src="data:image/png;base64,{data}"></p>'


def _text(value: Any) -> str:
    """Without what would move a cursor, or be a tag."""
    return html.escape(printable(str(value)))
