"""A report as a value, and that value as Markdown or as one HTML page that asks nothing of the network. Pure.

What a result holds may come from a stranger: every word of it is printed, none of it is obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from transcoder.bench.plots import COLOURS, MARK, STYLE, printable


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a part."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A thought; `loud` where it must not be overlooked."""

    text: str
    loud: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """Thoughts one below the other; `loud` where they must not be overlooked."""

    items: tuple[str, ...]
    loud: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words below their columns; all columns but the first `words` hold numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot at two widths, with its name within the page."""

    name: str
    caption: str
    wide: Element
    narrow: Element


@dataclass(frozen=True, slots=True)
class Code:
    """A command line, as it is typed."""

    text: str


Block = Heading | Paragraph | Bullets | Table | Figure | Code


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its verdict comes first."""

    verdict: str
    blocks: tuple[Block, ...] = field(default=())

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Figure))


def markdown(document: Document, pictures: Mapping[str, str] | None = None) -> str:
    """The document as Markdown (GitHub's); `pictures` are the addresses of its figures, left out where not given."""
    parts = [f"# {_escaped(document.verdict)}"]
    for block in document.blocks:
        parts += [part for part in [_marked_down(block, pictures or {})] if part]
    return "\n\n".join([*parts, f"<!-- {MARK} -->"]) + "\n"


def html(document: Document) -> str:
    """The document as one page: no script, no address, nothing loaded."""
    page = Element("html", {"lang": "en"})
    head = SubElement(page, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"name": "generator", "content": MARK})
    # A second lock, should an escape ever fail: the page may load and run nothing at all.
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "meta", {"name": "color-scheme", "content": "light dark"})
    SubElement(head, "title").text = printable(document.verdict)
    SubElement(head, "style").text = COLOURS + STYLE + _PAGE
    main = SubElement(SubElement(page, "body"), "main")
    SubElement(main, "h1").text = printable(document.verdict)
    for block in document.blocks:
        main.append(_element(block))
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


_PAGE: Final = (
    "body{margin:0;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    "main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}"
    "h1{font-size:1.45rem;line-height:1.3;margin:.5rem 0 1rem;text-wrap:pretty;overflow-wrap:anywhere}"
    "h2{font-size:1.1rem;margin:2.25rem 0 .5rem;padding-bottom:.25rem;border-bottom:1px solid var(--grid)}"
    "p,li{max-width:44rem;overflow-wrap:anywhere}"
    ".loud{border:2px solid var(--ink);border-left-width:.5rem;padding:.6rem 1rem;margin:1rem 0;font-weight:600;"
    "max-width:none}"
    "ul.loud{padding-left:2rem}.loud li{max-width:none}"
    ".scroll{overflow-x:auto;margin:.4rem 0 0}"
    "table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--grid)}"
    "th{font-weight:600;vertical-align:bottom;border-bottom:1px solid var(--muted)}"
    "th.word,td.word{text-align:left;overflow-wrap:break-word;max-width:24rem}"
    "td:first-child{min-width:5.5rem}"
    "td:first-child,th:first-child{position:sticky;left:0;background:var(--paper);padding-left:0}"
    "td.number{white-space:nowrap}"
    "figure{margin:1rem 0 1.5rem}figcaption{color:var(--muted);font-size:.85rem;max-width:44rem}"
    "figure svg{max-width:100%;height:auto}figure .narrow{display:none}"
    "pre{background:var(--band);padding:.75rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}"
    "@media screen and (max-width:47rem){figure .wide{display:none}figure .narrow{display:block}}"
    "@media print{html{font-size:10.5px}body{font-size:1rem}main{max-width:none;padding:0}.scroll{overflow:visible}"
    "th,td{padding:.2rem .35rem}td.number{white-space:normal}figure svg{max-width:82%;max-height:23cm;width:auto}"
    "td:first-child,th:first-child{position:static;background:none}"
    "tr,figure:not(.table),.loud{break-inside:avoid}figcaption,h2{break-after:avoid}"
    "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}"
)


def _element(block: Block) -> Element:
    match block:
        case Heading(text):
            return _worded("h2", text)
        case Paragraph(text, loud):
            return _worded("p", text, "loud" if loud else "")
        case Code(text):
            return _worded("pre", text)
        case Bullets(items, loud):
            found = Element("ul", {"class": "loud"} if loud else {})
            found.extend(_worded("li", item) for item in items)
            return found
        case Table():
            return _tabled(block)
        case Figure(name, caption, wide, narrow):
            figure = Element("figure", {"id": name})
            for css, plot in (("wide", wide), ("narrow", narrow)):
                SubElement(figure, "div", {"class": css}).append(plot)
            figure.append(_worded("figcaption", caption))
            return figure


def _tabled(block: Table) -> Element:
    figure = Element("figure", {"class": "table"})
    figure.append(_worded("figcaption", block.caption))
    table = SubElement(SubElement(figure, "div", {"class": "scroll", "tabindex": "0"}), "table")
    heads = SubElement(SubElement(table, "thead"), "tr")
    for place, column in enumerate(block.columns):
        heads.append(_worded("th", column, "word" if place < block.words else ""))
    body = SubElement(table, "tbody")
    for row in block.rows:
        line = SubElement(body, "tr")
        for place, cell in enumerate(row):
            line.append(_worded("td", cell, "word" if place < block.words else "number"))
    return figure


def _worded(tag: str, text: str, css: str = "") -> Element:
    found = Element(tag, {"class": css} if css else {})
    found.text = printable(text)
    return found


def _marked_down(block: Block, pictures: Mapping[str, str]) -> str:
    match block:
        case Heading(text):
            return f"## {_escaped(text)}"
        case Paragraph(text, loud):
            return f"> **{_escaped(text)}**" if loud else _escaped(text)
        case Code(text):
            return _fenced(text)
        case Bullets(items, loud):
            return "\n".join(f"- **{_escaped(item)}**" if loud else f"- {_escaped(item)}" for item in items)
        case Table(caption, columns, rows, words):
            sides = ["---" if place < words else "---:" for place in range(len(columns))]
            lines = [_row([_escaped(column) for column in columns]), _row(sides)]
            lines += [_row([_escaped(cell) for cell in row]) for row in rows]
            return f"{_escaped(caption)}\n\n" + "\n".join(lines)
        case Figure(name, caption, _, _):
            return f"![{_escaped(caption)}]({pictures[name]})" if name in pictures else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _fenced(text: str) -> str:
    """Between fences that are longer than any in the text."""
    safe = printable(text)
    longest = max((len(run) for run in re.findall("`+", safe)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{safe}\n{fence}"


_MARKS = re.compile(
    r"[\\`*_|~$@]|^\[|\](?=[(\[:])|(?<=:)//|(?<=www)\.|^(?:#|[-+](?=\s)|=|\d+[.)](?=\s))|^\s+|\s+$", re.IGNORECASE
)


def _escaped(text: str) -> str:
    """The text so that Markdown shows it as it is: no mark-up, no HTML, no link, on one line."""
    safe = printable(text).replace("\u2028", " ").replace("\u2029", " ")
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(_harmless, safe)


def _harmless(found: re.Match[str]) -> str:
    mark = found[0]
    if mark.isspace():
        return ""
    if mark == "@":  # what mentions people; a backslash does not help everywhere
        return "&#64;"
    if mark == "//":
        return "&#47;&#47;"
    return f"{mark[:-1]}\\{mark[-1]}"
