"""Charts as SVG text, of one palette: sharp at any size, small, and readable in a diff.

figures.py writes them as files, the page (__main__.py) puts them between its sections. Each is a card of its
own, white on any page, so it looks the same in light and dark. Colors are Okabe and Ito's (told apart with
any color vision), darkened until text on white is readable. None carries a meaning alone: false words are
underlined, curves have their names at their ends, bars and cells hold their numbers.
"""

import base64
import io
import math
from html import escape

from amp_min.world import drawing, oracle

WIDTH = 760                     # of a card in the tutorial; words are at least 13 units high
INK, SOFT, LINE, FALSE, TINT = "#1c1c1e", "#5c5c62", "#d0d0d6", "#b3001b", "#e8f1f8"
CURVES = ["#0068a8", "#b84700", "#00745a", "#9c4580", "#7d5f00"]
POINTS = 40                     # of a curve at most
LETTER, ROW = 7.4, 20           # an upper estimate of a letter's width at 14 units, and the height of a line


def card(title, height, parts, width=WIDTH):
    """A whole picture.  title: what it shows, in words, for those who do not see it."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" '
            f'viewBox="0 0 {width} {height:g}" role="img" '
            f'font-family="system-ui, Segoe UI, DejaVu Sans, sans-serif" font-size="14" fill="{INK}">\n'
            f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" rx="8" fill="#fff"/>\n'
            + "\n".join(parts) + "\n</svg>\n")


def attributes(style):
    return "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())


def text(x, y, words, anchor="start", **style):
    """Escaped words; style: SVG attributes, with _ for -."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{attributes(style)}>{escape(str(words))}</text>'


def box(x, y, width, height, fill="none", stroke=LINE, **style):
    return (f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"'
            f'{attributes(style)}/>')


# ---- a picture, and an answer with its false words marked ----

def png(image, side=384):
    """A Pillow image as a data URI: at most `side` wide or high, as much as a sharp screen shows."""
    image, data = image.copy(), io.BytesIO()
    image.thumbnail((side, side))
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def scene(x, y, side, theme, groups):
    """A drawn scene, as the model sees it."""
    source = png(drawing.draw(theme, groups))
    return [f'<image x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" href="{source}"/>']


def answer(x, y, width, said, scene=None):
    """(parts, height): the text in lines of `width`; what the scene contradicts is red, bold, underlined."""
    false = [range(*span) for span in oracle.false_spans(said, scene)] if scene else []
    lines, at, start = [[]], 0, 0
    for word in said.split(" "):
        if at and (at + len(word)) * LETTER > width:
            lines.append([])
            at = 0
        wrong = any(start in span or start + len(word) - 1 in span for span in false)
        lines[-1].append((word, wrong))
        at, start = at + len(word) + 1, start + len(word) + 1
    red = f'<tspan fill="{FALSE}" font-weight="bold" text-decoration="underline">'
    parts = []
    for n, line in enumerate(lines):
        marked = " ".join(f"{red}{escape(word)}</tspan>" if wrong else escape(word) for word, wrong in line)
        parts.append(f'<text x="{x:g}" y="{y + 14 + ROW * n:g}">{marked}</text>')
    return parts, ROW * len(lines)


# ---- numbers as shades, as lengths, as curves ----

def matrix(x, y, cell, rows, across, down, width=None, outlined=()):
    """Numbers in 0-1, darker is more; None leaves a cell empty.  across, down: names of columns and rows.

    x, y: upper left corner of the cells; names stand outside.  outlined: (row, column) pairs to frame.
    """
    width, parts = width or cell, []
    for i, values in enumerate(rows):
        parts.append(text(x - 8, y + cell * (i + 0.5) + 5, down[i], "end"))
        for j, value in enumerate(values):
            shade = 0 if value is None else max(0.0, min(1.0, value))
            fill = "#" + "".join(f"{round(255 + (dark - 255) * shade):02x}" for dark in (0, 62, 110))
            fill, words = ("#f4f4f6", "") if value is None else (fill, f"{value:.2f}")
            parts += [box(x + width * j, y + cell * i, width, cell, fill, "#fff"),
                      text(x + width * (j + 0.5), y + cell * (i + 0.5) + 5, words, "middle",
                           fill="#fff" if shade > 0.55 else INK)]
    frame = {"stroke": "#e07b00", "stroke_width": 3}
    parts += [box(x + width * j + 1.5, y + cell * i + 1.5, width - 3, cell - 3, **frame) for i, j in outlined]
    return parts + [text(x + width * (j + 0.5), y - 8, name, "middle") for j, name in enumerate(across)]


def bars(x, y, width, rows, longest, colors):
    """(parts, height): rows of (name, [(length or None, words at its end), …]), a bar for each color.

    longest: the value whose bar takes all the room; words get the last 110 units, names the first 84.
    """
    parts, at = [], y
    for name, values in rows:
        parts.append(text(x + 78, at + 9 * len(values) + 5, name, "end"))
        for color, (value, words) in zip(colors, values, strict=True):
            length = 0 if not value else (width - 194) * value / longest
            parts.append(box(x + 84, at, max(length, 1), 16, color, color))
            parts.append(text(x + 90 + length, at + 13, words, font_size=13))
            at += 18
        at += 10
    return parts, at - y - 10


def ticks(low, high):
    """About four round numbers that span low to high."""
    span = (high - low) or abs(high) or 1
    unit = 10 ** math.floor(math.log10(span / 4))
    step = min((unit * m for m in (1, 2, 5, 10)), key=lambda size: abs(span / size - 4))
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.ceil(high / step), first + 1) + 1)]


def chart(x, y, width, height, title, curves):
    """A curve for each name -> values, one value an optimizer step; a point is the mean of `size` steps.

    The sets of one step are about equally long, those of the next are not: single values say more of length
    than of training.
    """
    steps = max(map(len, curves.values()))
    size = math.ceil(steps / POINTS)
    thin = lambda values: [sum(values[i:i + size]) / len(values[i:i + size]) for i in range(0, steps, size)]
    curves = {name: thin(values) for name, values in curves.items()}
    n = max(map(len, curves.values()))
    values = [value for curve in curves.values() for value in curve]
    marks, margin = ticks(min(values), max(values)), 14 + 9 * max(map(len, curves))
    left, right, top, bottom = x + 52, x + width - margin, y + 26, y + height - 26
    at_x = lambda step: left + (right - left) * (step / (n - 1) if n > 1 else 1)
    at_y = lambda value: bottom - (bottom - top) * (value - marks[0]) / (marks[-1] - marks[0])
    parts = [text(x, y + 10, title, font_weight="bold")]
    for mark in marks:
        parts.append(f'<line x1="{left:g}" x2="{right:g}" y1="{at_y(mark):.1f}" y2="{at_y(mark):.1f}" '
                     f'stroke="{LINE if mark else SOFT}"/>')
        number = f"{mark:.6g}".replace("-", "−")
        parts.append(text(left - 6, round(at_y(mark) + 5, 1), number, "end", fill=SOFT, font_size=13))
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
