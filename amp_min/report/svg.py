"""Pictures as SVG text: sharp at any size, small, and readable in a diff.  Used by figures.py.

A picture is a card of its own, white on any page, so it looks the same in light and dark.  Words are at least 13 units
high on a card 760 wide.  Colours are Okabe and Ito's, darkened until text on white is readable; none carries a meaning
alone: false words are bold and underlined as well, curves have their names at their ends, cells hold their numbers.
"""

import math
from html import escape

from amp_min.report.__main__ import ticks
from amp_min.world import drawing, oracle

WIDTH = 760
INK, SOFT, LINE, FALSE, TINT = "#1c1c1e", "#5c5c62", "#d0d0d6", "#b3001b", "#e8f1f8"
CURVES = ["#0068a8", "#b84700", "#00745a", "#9c4580", "#7d5f00"]
POINTS = 40                     # of a curve at most
LETTER, ROW = 7.4, 20           # an upper estimate of a letter's width at 14 units, and the height of a line


def card(title, height, parts):
    """A whole picture.  title: what it shows, in words, for those who do not see it."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif" font-size="14" fill="{INK}">\n'
            f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" rx="8" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def text(x, y, words, anchor="start", **style):
    """Escaped words; style: SVG attributes, with _ for -."""
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{attributes}>{escape(str(words))}</text>'


def box(x, y, width, height, fill="none", stroke=LINE, **style):
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"{attributes}/>'


# ---- an answer, wrapped, its false words marked ----

def answer(x, y, width, said, scene=None):
    """(parts, height): the text in lines of `width`; what is false of the scene is red, bold and underlined."""
    false = [range(*span) for span in oracle.false_spans(said, scene)] if scene else []
    lines, at, start = [[]], 0, 0
    for word in said.split(" "):
        if at and (at + len(word)) * LETTER > width:
            lines.append([])
            at = 0
        wrong = any(start in span or start + len(word) - 1 in span for span in false)
        lines[-1].append((word, wrong))
        at, start = at + len(word) + 1, start + len(word) + 1
    parts = []
    for n, line in enumerate(lines):
        marked = " ".join(f'<tspan fill="{FALSE}" font-weight="bold" text-decoration="underline">{escape(word)}</tspan>' if wrong
                          else escape(word) for word, wrong in line)
        parts.append(f'<text x="{x:g}" y="{y + 14 + ROW * n:g}">{marked}</text>')
    return parts, ROW * len(lines)


# ---- a scene ----

def scene(x, y, side, theme, groups):
    """drawing.draw once more, as shapes: the same icons, at any size."""
    hexed = lambda rgb: "#%02x%02x%02x" % tuple(rgb)
    parts = [f'<g transform="translate({x:g} {y:g}) scale({side / 3:.4g})">', f'<rect width="3" height="3" fill="{hexed(drawing.SKY[theme])}"/>',
             f'<rect y="2" width="3" height="1" fill="{hexed(drawing.GROUND[theme])}"/>']
    for group in groups:
        rgb = drawing.RGB[group["color"]]
        fills = {drawing.MAIN: hexed(rgb), drawing.DARK: hexed(part * 5 // 9 for part in rgb), drawing.PALE: "#fafaf4"}
        size = 0.92 if group["size"] == "large" else 0.58
        for row, column in group["cells"]:
            edge = lambda cell: cell + 0.5 - size / 2
            parts.append(f'<g transform="translate({edge(column):.3g} {edge(row):.3g}) scale({size})">')
            for shape, b, fill in drawing.ICONS[group["kind"]]:
                middle, radii = ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2), (abs(b[2] - b[0]) / 2, abs(b[3] - b[1]) / 2)
                drawn = {"rect": f'<rect x="{b[0]}" y="{b[1]}" width="{2 * radii[0]:.3g}" height="{2 * radii[1]:.3g}"',
                         "oval": f'<ellipse cx="{middle[0]:.3g}" cy="{middle[1]:.3g}" rx="{radii[0]:.3g}" ry="{radii[1]:.3g}"',
                         "poly": f'<polygon points="{" ".join(map(str, b))}"',
                         "pie": f'<path d="M{b[0]} {middle[1]:.3g}A{radii[0]:.3g} {radii[1]:.3g} 0 0 1 {b[2]} {middle[1]:.3g}Z"'}[shape]
                parts.append(f'{drawn} fill="{fills[fill]}"/>')
            parts.append("</g>")
    return ["".join([*parts, "</g>"])]


# ---- numbers as shades ----

def matrix(x, y, cell, rows, across, down, width=None, outlined=(), digits=2):
    """A table of numbers in 0-1, darker is more; None leaves a cell empty.  across, down: names of columns and rows.

    x, y: upper left corner of the cells; names stand outside.  outlined: (row, column) pairs to frame.
    """
    width, parts = width or cell, []
    for i, values in enumerate(rows):
        parts.append(text(x - 8, y + cell * (i + 0.5) + 5, down[i], "end"))
        for j, value in enumerate(values):
            shade = 0 if value is None else max(0.0, min(1.0, value))
            fill = "#%02x%02x%02x" % tuple(round(255 + (dark - 255) * shade) for dark in (0, 62, 110))
            parts.append(box(x + width * j, y + cell * i, width, cell, fill if value is not None else "#f4f4f6", "#fff"))
            if value is not None:
                parts.append(text(x + width * (j + 0.5), y + cell * (i + 0.5) + 5, f"{value:.{digits}f}", "middle",
                                  fill="#fff" if shade > 0.55 else INK))
    parts += [box(x + width * j + 1.5, y + cell * i + 1.5, width - 3, cell - 3, "none", "#e07b00", stroke_width=3) for i, j in outlined]
    return parts + [text(x + width * (j + 0.5), y - 8, name, "middle") for j, name in enumerate(across)]


# ---- curves ----

def chart(x, y, width, height, title, curves):
    """A curve for each name -> values, one value an optimizer step; a point is the mean of `size` steps.

    One step's sets are about equally long, the next step's are not: single values say more about length than about training.
    """
    steps = max(map(len, curves.values()))
    size = math.ceil(steps / POINTS)
    curves = {name: [sum(part) / len(part) for part in (values[i:i + size] for i in range(0, steps, size))] for name, values in curves.items()}
    n = max(map(len, curves.values()))
    values = [value for curve in curves.values() for value in curve]
    marks, margin = ticks(min(values), max(values)), 14 + 9 * max(map(len, curves))
    left, right, top, bottom = x + 52, x + width - margin, y + 26, y + height - 26
    at_x = lambda step: left + (right - left) * (step / (n - 1) if n > 1 else 1)
    at_y = lambda value: bottom - (bottom - top) * (value - marks[0]) / (marks[-1] - marks[0])
    parts = [text(x, y + 10, title, font_weight="bold")]
    for mark in marks:
        parts.append(f'<line x1="{left:g}" x2="{right:g}" y1="{at_y(mark):.1f}" y2="{at_y(mark):.1f}" stroke="{LINE if mark else SOFT}"/>')
        parts.append(text(left - 6, round(at_y(mark) + 5, 1), f"{mark:.6g}".replace("-", "−"), "end", fill=SOFT, font_size=13))
    note = f"steps 1 to {steps}, means of {size}" if size > 1 else f"steps 1 to {steps}"
    parts.append(text((left + right) / 2, y + height - 6, note, "middle", fill=SOFT, font_size=13))
    ends = sorted(range(len(curves)), key=lambda k: -list(curves.values())[k][-1])
    floor = top - 11
    for place, k in enumerate(ends):
        name, curve = list(curves.items())[k]
        points = " ".join(f"{at_x(i):.1f},{at_y(value):.1f}" for i, value in enumerate(curve))
        # Names keep 15 units apart, also where curves end together.
        floor = max(floor + 15, min(at_y(curve[-1]) + 5, bottom + 5 - 15 * (len(ends) - 1 - place)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{CURVES[k % 5]}" stroke-width="2"/>')
        parts.append(text(right + 6, round(floor, 1), name, fill=CURVES[k % 5], font_weight="bold"))
    return parts
