"""Results as an SVG of horizontal bars: one panel per figure, one bar per engine and precision. Plain text, no library.

Colours come from CSS with a dark variant, so that the picture reads on either background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html import escape

from report import Document, Line, ceilings, lines

WIDTH, LABELS, BAR, GAP, HEAD, MARGIN = 760, 170, 15, 5, 44, 12
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px } .note { fill: #656d76; font-size: 11px }
.own { fill: #0969da } .peer { fill: #afb8c1 } .own-label { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #8d96a0 } .own { fill: #4493f8 } .peer { fill: #57606a }
}"""


def panel(
    title: str, note: str, rows: list[tuple[str, float, str]], top: int
) -> tuple[list[str], int]:
    """(elements, height). Rows are (label, value, text after the bar), longest bar first."""
    most = max(value for _, value, _ in rows)
    out = [
        f'<text class="title" x="{MARGIN}" y="{top + 16}">{escape(title)}</text>',
        f'<text class="note" x="{MARGIN}" y="{top + 32}">{escape(note)}</text>',
    ]
    room = WIDTH - LABELS - 2 * MARGIN - 110
    for index, (label, value, text) in enumerate(rows):
        y = top + HEAD + index * (BAR + GAP)
        own = label.startswith("octavo")
        style = ' class="own-label"' if own else ""
        out += [
            f'<text{style} x="{MARGIN + LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{"own" if own else "peer"}" x="{MARGIN + LABELS}" y="{y}" rx="2" '
            f'width="{max(1.0, room * value / most):.1f}" height="{BAR}"/>',
            f'<text x="{MARGIN + LABELS + room * value / most + 6:.1f}" y="{y + 12}">{escape(text)}</text>',
        ]
    return out, HEAD + len(rows) * (BAR + GAP) + 14


def bars(
    found: list[Line], value: Callable[[Line], float | None], share: Callable[[Line], float | None]
) -> list[tuple[str, float, str]]:
    """One row per engine, largest first, with its share of the ceiling."""
    rows = []
    for line in found:
        size, part = value(line), share(line)
        if size is not None:
            text = f"{size:,.0f}" if size >= 100 else f"{size:.1f}"
            rows.append((line.label, size, text if part is None else f"{text}  ({part:.0%})"))
    return sorted(rows, key=lambda row: -row[1])


def to_svg(document: Document) -> str:
    """Decode alone, prefill, and the largest batch at the shortest context that was measured."""
    found = lines(document)
    gb_per_s, gflop_per_s = ceilings(document)
    alone = [line for line in found if line.case.startswith("1x")]
    first = [line for line in alone if line.case == alone[0].case]
    panels = [
        (
            "Decoding alone, tokens per second",
            f"in brackets: share of the {gb_per_s:.0f} GB/s that this machine reads",
            bars(first, lambda line: line.decode_tok_s, lambda line: line.decode_share),
        ),
        (
            f"Prefill of {first[0].case[2:].split('+')[0]} tokens, tokens per second",
            f"in brackets: share of the {gflop_per_s:.0f} GFLOP/s of its best 16- or 32-bit matrix product",
            bars(first, lambda line: line.prefill_tok_s, lambda line: line.prefill_share),
        ),
    ]
    counts = Counter(line.case for line in found)
    batches = [line for line in found if not line.case.startswith("1x") and counts[line.case] > 1]
    if batches:
        case = max((line.case for line in batches), key=lambda name: int(name.split("x")[0]))
        batch, rest = case.split("x")
        length, output = rest.split("+")
        chosen = [line for line in batches if line.case == case]
        tokens = int(batch) * int(output)
        panels.append(
            (
                f"{batch} prompts of {length} tokens, {output} tokens out of each: output tokens per second",
                "prompts included in the time",
                bars(chosen, lambda line: tokens / line.total_s, lambda line: None),
            )
        )
    top, parts = MARGIN, []
    for title, note, rows in panels:
        elements, height = panel(title, note, rows, top)
        parts += elements
        top += height
    machine = document["environment"]
    parts.append(
        f'<text class="note" x="{MARGIN}" y="{top + 10}">{escape(document["shape"])} shape, random weights; '
        f"{machine['usable_cores']} cores of {escape(str(machine['cpu']))}; medians</text>"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 20}" role="img" '
        f'aria-label="Octavo beside other engines">\n<style>{STYLE}\n</style>\n{body}\n</svg>\n'
    )
