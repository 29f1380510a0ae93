"""The report's paper: its style sheet, and the few pieces of HTML that everything on it is made of."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

LONGEST_TEXT = 300  # characters of any word out of a file

# Nothing is fetched and nothing is run, whatever a file smuggles in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #20242a; --muted: #69717c; --line: #e2e4e8;
  --soft: #f2f3f4; --blue: #2868a9; --orange: #c05a26; --good: #26744b; --bad: #a94a12;
  --p0: #2868a9; --p1: #c05a26; --p2: #3b8a63; --p3: #8358a8; --p4: #b08a1e; --p5: #4b98a8; --p6: #a9506f;
  --p7: #6f7a42; --p8: #a3acb8; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e8eb; --muted: #98a1ac; --line: #30363d;
  --soft: #1e2227; --blue: #6fb0f2; --orange: #f29a66; --good: #6cc795; --bad: #f2a06c;
  --p0: #5f9fe0; --p1: #e28a56; --p2: #5fb98a; --p3: #ac86d0; --p4: #d4b04c; --p5: #6fbccb; --p6: #d47c9a;
  --p7: #a3b06a; --p8: #6f7885; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -0.02em; font-weight: 650; }
h2 { font-size: 1.25rem; margin: 3.5rem 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  letter-spacing: -0.01em; font-weight: 650; }
h3 { font-size: 1rem; margin: 2.25rem 0 0.75rem; font-weight: 600; }
p { margin: 0.5rem 0; max-width: 46rem; }
.kicker, .note, figcaption, th, dt { color: var(--muted); }
.kicker { margin: 0 0 0.25rem; }
.note, figcaption { font-size: 0.875rem; }
.badge { display: inline-block; font-size: 0.8125rem; padding: 0.05rem 0.6rem; border: 1px solid var(--line);
  border-radius: 1rem; color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.25rem 1.5rem;
  margin: 1.75rem 0; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 550; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles dt { font-size: 0.8125rem; }
.verdicts p { padding-left: 0.9rem; border-left: 3px solid var(--good); margin: 0.75rem 0; max-width: 52rem; }
.verdicts p.warning { border-color: var(--bad); }
.verdicts p.unknown { border-color: var(--line); color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr));
  gap: 1.75rem 2rem; }
figure { margin: 0; min-width: 0; }
figure h4 { font-size: 0.9375rem; font-weight: 600; margin: 0 0 0.35rem; }
figure svg { display: block; width: 100%; height: auto; }
svg { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, sans-serif; }
.narrow { display: none; }
.pictures { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
.pictures img { display: block; max-width: 100%; height: auto; border-radius: 4px; border: 1px solid var(--line);
  margin-bottom: 0.5rem; }
.scroll { overflow-x: auto; }
img.png { min-width: min(40rem, 100%); }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; }
.slim { max-width: 48rem; }
th { text-align: left; font-weight: 500; font-size: 0.8125rem; }
td, th { padding: 0.4rem 1.25rem 0.4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.name, .status { white-space: nowrap; overflow-wrap: normal; }
.inside td:first-child { padding-left: 1.25rem; color: var(--muted); }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.stack { display: flex; height: 1.25rem; gap: 2px; border-radius: 4px; overflow: hidden; margin: 1rem 0 1.25rem;
  max-width: 48rem; }
.swatch { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 2px; margin-right: 0.5rem; }
code, pre { font: 0.875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--soft); border-radius: 6px; padding: 0.75rem 1rem; margin: 0.35rem 0 1.25rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 1.25rem 0; } summary { cursor: pointer; color: var(--muted); }
@media (max-width: 820px) { .wide { display: none; } .narrow { display: block; max-width: 34rem; } }
@media (max-width: 640px) { main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.6rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .name { white-space: normal; } td, th { padding-right: 0.75rem; }
  .cards thead { display: none; } .cards tr { display: grid; grid-template-columns: 1fr auto 4.5rem;
    gap: 0.1rem 1rem; padding: 0.6rem 0; border-bottom: 1px solid var(--line); } .cards td { border: 0; padding: 0; }
  .cards .status { text-align: right; } .cards td:last-child { grid-column: 1 / -1; color: var(--muted);
    font-size: 0.875rem; } .cards strong { color: var(--ink); } }
@media print { main { max-width: none; } figure, tr { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """Words out of a file, made harmless and not too long."""
    words = str(value)
    return escape(words if len(words) <= LONGEST_TEXT else f"{words[:LONGEST_TEXT - 3]}...")


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. ``body`` is HTML, ``title`` is not."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
            + "\n".join(body) + "\n</main>\n</body>\n</html>\n")


def section(name: str, title: str, parts: Iterable[str]) -> str:
    return f'<section id="{name}">\n<h2>{title}</h2>\n' + "\n".join(part for part in parts if part) + "\n</section>"


def note(words: str) -> str:
    """A grey sentence: what is not there, and why. ``words`` is text."""
    return f'<p class="note">{escape(words)}</p>'


def chart(title: str, caption: str, svg: str) -> str:
    """A chart with its sentence; nothing where there is no chart."""
    if not svg:
        return ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h4>{escape(title)}</h4>{svg}{below}</figure>"


def charts(figures: Iterable[str]) -> str:
    """The charts that there are, side by side as far as the screen is wide; nothing where there is none."""
    shown = [figure for figure in figures if figure]
    return '<div class="charts">\n' + "\n".join(shown) + "\n</div>" if shown else ""


def table(head: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """``rows``: HTML made by `row`; a head that begins with # is of a column of numbers. ``kind``: slim, or cards,
    which is one on a phone."""
    cells = "".join(f'<th class="number">{escape(name[1:])}</th>' if name.startswith("#") else
                    f"<th>{escape(name)}</th>" for name in head)
    opening = f'<table class="{kind}">' if kind else "<table>"
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return f'<div class="scroll">{opening}{top}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"


def row(cells: Sequence[tuple[str, str]], kind: str = "") -> str:
    """``cells``: class (or nothing) and HTML of each."""
    inside = "".join(f'<td class="{name}">{html}</td>' if name else f"<td>{html}</td>" for name, html in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def pairs(values: Iterable[tuple[str, str]], kind: str) -> str:
    """Names and values, both text."""
    inside = "\n".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values)
    return f'<dl class="{kind}">\n{inside}\n</dl>'


def picture(data: bytes, kind: str, caption: str) -> str:
    """An image that lies in the page itself; ``kind``: gif or png."""
    content = base64.b64encode(data).decode("ascii")
    return (f'<figure><div class="scroll"><img class="{kind}" src="data:image/{kind};base64,{content}" '
            f'alt="{text(caption)}"></div><figcaption>{text(caption)}</figcaption></figure>')


def command(line: str, words: str) -> str:
    """A command to copy, whole however long it is, under the sentence ``words``."""
    return f"<p>{escape(words)}</p>\n<pre>{escape(line)}</pre>"
