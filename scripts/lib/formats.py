"""Figures in words, and a page of tables as markdown, LaTeX, CSV or HTML.

A page is a list of (kind, content): ("heading", text), ("text", text), ("limits", text), which LaTeX has as a
comment, ("list", texts), ("figures", None), where HTML has the drawings, ("table", (title, header, rows of
texts)). pandas, which `datasets` brings along, does the formats (with tabulate and jinja2:
scripts/requirements.txt).
"""
import os
import re
import statistics
from html import escape
from pathlib import Path

import pandas

from metrics import spoken

# --- figures in words ---------------------------------------------------------------------------------------

def percent(values):
    """Mean and, of several, standard deviation, in percent."""
    values = [100 * value for value in values]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def probability(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def span(values, form=str):
    """One value, or the smallest and the largest."""
    values = sorted(set(values))
    return form(values[0]) if len(values) == 1 else f"{form(values[0])} to {form(values[-1])}"


# --- pages --------------------------------------------------------------------------------------------------

def as_frame(header, rows):
    frame = pandas.DataFrame(rows, columns=range(len(header)), dtype=str)
    frame.columns = header
    return frame


def to_markdown(page):
    parts = []
    for number, (kind, content) in enumerate(page):
        if kind == "heading":
            parts.append(f"{'#' if number == 0 else '##'} {content}")
        elif kind == "table":
            frame = as_frame(*content[1:])
            parts.append(frame.to_markdown(index=False, disable_numparse=True, tablefmt="pipe"))
        elif kind != "figures":
            parts.append("\n".join(f"- {line}" for line in content) if kind == "list" else content)
    return "\n\n".join(parts) + "\n"


def to_tex(page):
    """The tables alone, each under a comment that names it."""
    parts = ["% needs the packages booktabs and, for pdflatex, inputenc with utf8"]
    for kind, content in page:
        if kind == "limits":
            parts.append(f"% {content}")
        elif kind == "table":
            frame, columns = as_frame(*content[1:]), "l" * len(content[1])
            text = frame.to_latex(index=False, escape=True, column_format=columns).strip()
            parts.append(f"% {content[0]}\n{text}")
    return "\n\n".join(parts) + "\n"


def to_csv(header, rows):
    """One table."""
    frame = as_frame(header, [[str(value) for value in row] for row in rows])
    return frame.to_csv(index=False, lineterminator="\n")


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:separate;border-spacing:0;margin:1rem 0;font-size:13px}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #ccc;white-space:nowrap}
th{border-bottom:2px solid #333}td:first-child,th:first-child{position:sticky;left:0;background:#fff}
tr:hover td{background:#f3f3f3}.wide{overflow-x:auto}figure{margin:1.5rem 0}li{overflow-wrap:anywhere}
figure svg{max-width:100%;height:auto}figcaption{color:#444}
@media(max-width:40rem){body{margin:1rem auto}td:first-child{white-space:normal;min-width:8rem}}
@media print{@page{size:landscape}body{margin:0;max-width:none;font-size:10pt}table{font-size:6.5pt}
.wide{overflow:visible}th,td{padding:.1rem .3rem}td:first-child,th:first-child{position:static}
h2{break-after:avoid}tr,figure{break-inside:avoid}figure svg{max-height:80vh}}"""
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">"""


def marked(text):
    """Text as HTML, what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def to_html(page, drawings, records, places, output):
    """One page that needs nothing else. drawings: (caption, svg text); places: {run: folder or file}, for
    links from where the page is written to."""
    parts = []
    for number, (kind, content) in enumerate(page):
        if kind == "heading":
            parts.append(f"<h{1 + (number > 0)}>{escape(content)}</h{1 + (number > 0)}>")
        elif kind in ("text", "limits"):
            parts.append(f"<p>{marked(content)}</p>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{marked(line)}</li>" for line in content) + "</ul>")
        elif kind == "figures":
            parts += [f"<figure>{svg[svg.index('<svg'):]}<figcaption>{escape(caption)}</figcaption></figure>"
                      for caption, svg in drawings]
        else:
            parts.append(f'<div class="wide">{as_frame(*content[1:]).to_html(index=False, border=0)}</div>')
    parts.append("<h2>Runs</h2><ul>")
    here = output.resolve().parent if output else Path.cwd()
    for record in records:
        best = "; ".join(f"{name} {spoken(row['dev'])}"
                         for name, row in record["rows"].items() if row["dev"])
        link = os.path.relpath(places[record["run"]].resolve(), here)
        parts.append(f'<li><a href="{escape(link)}">{escape(record["run"])}</a>: {escape(best)}</li>')
    parts.append("</ul>")
    top = f"{HEAD}<title>{escape(page[0][1])}</title><style>{STYLE}</style></head><body>"
    return "\n".join([top, *parts, "</body></html>"]) + "\n"
