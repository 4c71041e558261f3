"""The page of a report: HTML without scripts and without anything from elsewhere, readable on a phone.

Whatever comes from files (names of cases, classes, reasons) is escaped here, in :func:`text`, and only here: functions
that return a :class:`Html` have done it, and take everything else as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Ink and paper have a contrast of 13:1, muted text 6:1, links 6:1 (WCAG AA asks 4.5:1).
_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #52606d; --line: #d5dae0; --soft: #f3f5f7; --accent: #005a9c;
  --mark: #fff0d6; --mark-ink: #7a3e00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 22px 0 6px; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; padding-top: 12px; border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 75ch; overflow-wrap: anywhere; }
.muted, figcaption, footer { color: var(--muted); }
a { color: var(--accent); }
nav { margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
nav a { padding: 4px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.card { background: var(--soft); border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .9rem; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { overflow-wrap: break-word; max-width: 24em; }
td.long { min-width: 13em; max-width: 62ch; }
tr.marked td { background: var(--mark); }
tr.marked td:first-child { box-shadow: inset 4px 0 var(--mark-ink); padding-left: 10px; }
.tag { color: var(--mark-ink); font-weight: 600; white-space: nowrap; }
figure { margin: 14px 0 26px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .92rem; margin-bottom: 6px; overflow-wrap: anywhere; }
.overlay { overflow-x: auto; }
.overlay img { max-width: none; width: 100%; min-width: 560px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 10px 24px; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--accent); padding: 6px 0; }
footer { padding: 30px 20px 40px; font-size: .9rem; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 1.35rem; }
  .stacked thead { display: none; }
  .stacked tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .stacked td { display: block; padding: 0; border: 0; min-width: 0; }
  .stacked td:first-child { color: var(--muted); }
}
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
""".strip()


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape plain text; what is HTML stays."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def page(title: str, lead: Sequence[object], sections: Sequence[tuple[str, Sequence[object]]], footer: str) -> str:
    """A whole page.

    Args:
        title: Its heading.
        lead: Paragraphs or HTML under the heading.
        sections: Title and content of each, paragraphs or HTML.
        footer: Where it comes from.
    """
    links = "".join(f'<a href="#s{index}">{text(name)}</a>' for index, (name, _) in enumerate(sections))
    body = "".join(
        f'<section id="s{index}"><h2>{text(name)}</h2>{blocks(content)}</section>\n'
        for index, (name, content) in enumerate(sections)
    )
    # The policy lets a browser fetch nothing and run nothing, whatever a name may hold.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE}\n</style></head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>{blocks(lead)}<nav>{links}</nav></header>\n"
        f"<main>\n{body}</main>\n<footer>{text(footer)}</footer>\n</body></html>\n"
    )


def blocks(content: Sequence[object]) -> Html:
    """Plain texts as paragraphs; HTML as it is."""
    return Html("".join(item if isinstance(item, Html) else f"<p>{text(item)}</p>" for item in content))


def cards(values: Sequence[tuple[object, str]]) -> Html:
    """Large figures, each with what it is."""
    items = "".join(f'<div class="card"><b>{text(value)}</b><span>{text(name)}</span></div>' for value, name in values)
    return Html(f'<div class="cards">{items}</div>')


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    kinds: str = "",
    marked: Sequence[bool] = (),
    stacked: bool = False,
) -> Html:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        columns: Headings.
        rows: Cells.
        kinds: A letter for each column: ``n`` numbers, aligned right; ``c`` names; ``l`` long text. Default: all names.
        marked: Which rows to mark.
        stacked: On narrow screens, show the cells of a row one below the other.
    """
    names = {"n": "number", "c": "name", "l": "long"}
    styles = [names[kind] for kind in (kinds or "c" * len(columns))]
    head = "".join(f'<th scope="col" class="{style}">{text(name)}</th>' for name, style in zip(columns, styles))
    body = []
    for index, row in enumerate(rows):
        cells = "".join(f'<td class="{style}">{text(cell)}</td>' for cell, style in zip(row, styles, strict=True))
        body.append(f"<tr{' class=marked' if index < len(marked) and marked[index] else ''}>{cells}</tr>")
    kind = " class=stacked" if stacked else ""
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def long_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], kinds: str, marked: Sequence[bool] = (), first: int = 15
) -> Html:
    """A table of which all but the first rows are folded away."""
    upper = table(columns, rows[:first], kinds, marked[:first])
    if len(rows) <= first:
        return upper
    lower = table(columns, rows[first:], kinds, marked[first:])
    return Html(f"{upper}<details><summary>{len(rows) - first} more</summary>{lower}</details>")


def picture(source: str, caption: object, alt: str, wide: bool = False) -> Html:
    """An image given as a ``data:`` address; a wide one scrolls by itself on narrow screens."""
    image = f'<img src="{text(source)}" alt="{text(alt)}">'
    if wide:
        image = f'<div class="overlay" tabindex="0" role="region" aria-label="picture">{image}</div>'
    return Html(f"<figure><figcaption>{text(caption)}</figcaption>{image}</figure>")


def charts(items: Sequence[Html]) -> Html:
    """Pictures side by side where there is room."""
    return Html(f'<div class="charts">{"".join(items)}</div>')


def heading(words: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{text(words)}</h3>")


def tag(words: str) -> Html:
    """A word that stands out by weight, sign and colour."""
    return Html(f'<span class="tag">▲ {text(words)}</span>')
