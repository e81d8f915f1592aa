"""The tutorial's pictures that need no run: the method, σ(−m), the pairs, adapters, and the intervals of a study.

    python -m tutorial.diagrams --out tutorial/pictures

Written to be read beside the chapters: a card is white on any page, 760 wide, and says in its title what it shows.
"""

import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

from amp_min.support import script
from amp_min.support.script import UserError, needed

WIDTH, INK, SOFT, LINE, RED = 760, "#1c1c1e", "#5c5c62", "#d0d0d6", "#b3001b"
BLUE, ORANGE, TINT = "#0068a8", "#b84700", "#e8f1f8"
RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass
class Settings:
    out: Path = needed("folder for the pictures")


# ---- the few shapes that all of them use ----

def card(title, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img" font-size="14" fill="{INK}" '
            f'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif">\n<title>{escape(title)}</title>\n'
            f'<rect width="100%" height="100%" rx="8" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def text(x, y, words, anchor="start", fill=INK, weight="normal", size=14):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}" '
            f'font-size="{size}">{escape(str(words))}</text>')


def box(x, y, width, height, fill=TINT, stroke=BLUE):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def line(x1, y1, x2, y2, stroke=LINE, width=1, dash=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
            f'stroke-width="{width}"{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}/>')


def arrow(x1, y1, x2, y2, stroke=INK):
    """A line with a head of two strokes."""
    angle, parts = math.atan2(y2 - y1, x2 - x1), [line(x1, y1, x2, y2, stroke, 1.5)]
    return parts + [line(x2, y2, x2 - 8 * math.cos(angle + turn), y2 - 8 * math.sin(angle + turn), stroke, 1.5)
                    for turn in (0.45, -0.45)]


# ---- the pictures ----

def method():
    """prompt → K answers → ranking → pairs → loss → less red."""
    steps = [("prompt", ["a picture", "and a question"], "world"), ("K answers", ["y0 standard,", "others: models'"], "generate.py"),
             ("ranking", ["best first, by", "the auto-check"], "verify.py"), ("pairs", ["each better", "over each worse"], "train.py"),
             ("loss", ["better ones up,", "worse ones down"], "train.py"), ("less red", ["fewer false", "words"], "evaluate")]
    parts = []
    for n, (name, words, command) in enumerate(steps):
        x = 12 + 125 * n
        parts += [box(x, 20, 108, 92, "#fdeeee" if name == "less red" else TINT, RED if name == "less red" else BLUE),
                  text(x + 54, 44, name, "middle", RED if name == "less red" else BLUE, "bold", 15)]
        parts += [text(x + 54, 70 + 20 * k, word, "middle", size=12) for k, word in enumerate(words)]
        parts.append(text(x + 54, 132, command, "middle", SOFT, size=13))
        parts += arrow(x + 109, 66, x + 123, 66) if n < 5 else []
    y = 172
    for k, (words, red) in enumerate((("There is a red sun at the top.", ""), ("There is a red sun", "on the left."),
                                      ("There is", "a blue boat on the left."))):
        said = f'{escape(words)} <tspan fill="{RED}" font-weight="bold" text-decoration="underline">{escape(red)}</tspan>'
        parts += [text(16, y + 24 * k, f"y{k}", fill=BLUE, weight="bold"),
                  f'<text x="44" y="{y + 24 * k}">{said if red else escape(words)}</text>']
    parts += [text(400, y, "ranked:  y0 > y1 > y2"), text(400, y + 24, "pairs:  (0, 1)  (0, 2)  (1, 2)"),
              text(400, y + 48, "y0 is also held up by the penalty, Eq. 6")]
    return card("The data's way: a prompt gets K answers, they are ranked, pairs are made, a loss is computed, "
                "and the trained model says fewer false words", 240, parts)


def curve(x, y, f, fill, width=300, height=150, top=8.0, label=""):
    """f over m from −8 to 8, scaled so that `top` is at the upper edge."""
    at = lambda m, value: (x + width * (m + 8) / 16, y + height - height * value / top)
    points = " ".join("{:.1f},{:.1f}".format(*at(m / 5, f(m / 5))) for m in range(-40, 41))
    parts = [line(x, y + height, x + width, y + height, SOFT), line(x + width / 2, y, x + width / 2, y + height, LINE)]
    parts += [text(x + width * (m + 8) / 16, y + height + 18, str(m).replace("-", "−"), "middle", SOFT, size=13)
              for m in (-8, -4, 0, 4, 8)]
    return parts + [f'<polyline points="{points}" fill="none" stroke="{fill}" stroke-width="2"/>',
                    text(x, y - 12, label, weight="bold")]


def sigmoid():
    loss, pull = (lambda m: math.log1p(math.exp(-m))), (lambda m: 1 / (1 + math.exp(m)))
    parts = curve(40, 50, loss, BLUE, label="loss: −log σ(m)") + curve(420, 50, pull, ORANGE, top=1.0, label="pull: σ(−m), times β")
    for x, y, words in ((200, 50 + 150 - 150 * math.log(2) / 8, "ln 2"), (580, 125, "1/2")):
        parts += [f'<circle cx="{x - 10}" cy="{y:.1f}" r="4" fill="{RED}"/>', text(x + 2, y - 6, f"{words}: every pair's start", fill=RED)]
    parts += [text(40, 248, "left of 0: wrong order; right of 0: right order", fill=SOFT),
              text(420, 248, "a pair that is right fades out by itself", fill=SOFT)]
    return card("Two curves over the margin m: the DPO loss falls from a straight line to zero, and the pull falls from "
                "one to zero; both are marked at m = 0", 262, parts)


def pairs():
    """Which pairs are made of a > b > c > d."""
    kinds = {"--pairs all": [(i, j) for i in range(4) for j in range(i + 1, 4)],
             "--pairs adjacent": [(0, 1), (1, 2), (2, 3)], "--pairs best": [(0, 1), (0, 2), (0, 3)]}
    parts = []
    for n, (name, chosen) in enumerate(kinds.items()):
        x = 40 + 245 * n
        parts.append(text(x - 16, 28, f"{name}: {len(chosen)} pairs", weight="bold"))
        for i, j in chosen:
            bend, a, b = 34 * (j - i - 1), (x, 60 + 42 * i + 8), (x, 60 + 42 * j - 8)
            held = i == 0
            parts.append(f'<path d="M{a[0] + 14} {a[1]} Q{x + 30 + 1.6 * bend} {(a[1] + b[1]) / 2} {b[0] + 14} {b[1]}" fill="none" '
                         f'stroke="{RED if held else BLUE}" stroke-width="{2.5 if held else 1.5}"/>')
        for k, letter in enumerate("abcd"):
            parts += [f'<circle cx="{x}" cy="{60 + 42 * k}" r="14" fill="{TINT}" stroke="{BLUE}"/>',
                      text(x, 65 + 42 * k, letter, "middle", weight="bold")]
    parts.append(text(24, 232, "red: pairs with the best answer, the only ones that carry the penalty of Eq. 7", fill=RED))
    return card("The ranking a over b over c over d as three graphs: all six pairs, three adjacent pairs, and three "
                "pairs with the best answer", 246, parts)


def adapters():
    parts = [text(20, 108, "x", weight="bold", size=18), box(90, 30, 250, 60, "#f0f0f2", SOFT),
             text(215, 56, "W, frozen, in bf16", "middle", weight="bold"), text(215, 76, "out × in", "middle", SOFT),
             box(90, 130, 90, 60), text(135, 156, "A", "middle", BLUE, "bold", 16), text(135, 176, "r × in", "middle", SOFT),
             box(250, 130, 90, 60), text(295, 156, "B", "middle", BLUE, "bold", 16), text(295, 176, "out × r", "middle", SOFT),
             text(420, 166, "× α / r", "middle", SOFT), box(500, 80, 46, 46, "#fff", INK), text(523, 111, "+", "middle", size=22),
             text(600, 109, "y", weight="bold", size=18)]
    for ends in ((38, 100, 88, 62), (38, 106, 88, 158), (182, 160, 248, 160), (342, 60, 498, 98), (342, 160, 388, 160),
                 (452, 158, 498, 112), (548, 103, 592, 103)):
        parts += arrow(*ends)
    parts += [text(20, 226, "B starts at zero, so the sum is the frozen model's own output: policy = reference, loss = ln 2."),
              text(20, 248, "Switched off, the lower way is gone, and the same weights are the reference again.", fill=SOFT)]
    return card("A linear layer with an adapter: the input goes through the frozen matrix W and, beside it, through two "
                "thin trained matrices A and B; the two results are added", 262, parts)


def intervals():
    """The claims of results/controls.json that are shares: dots are means over seeds, bars 95 % intervals."""
    path = RESULTS / "controls.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; python -m amp_min.experiments controls writes it")
    study = json.loads(path.read_text(encoding="utf-8"))
    claims = [one for one in study["claims"] if one["interval"] and "score" not in one["claim"]]
    most = max(abs(end) for one in claims for end in one["interval"]) * 1.05
    at, parts = lambda value: 440 + 130 * value / most, []
    for n, one in enumerate(claims):
        y, open_ = 64 + 26 * n, one["verdict"] == "undecided"
        low, high = one["interval"]
        words = one["claim"].replace("beats", "over")
        for less in (", K = 4", ": no preference training", ", standard answers alone", ", no penalty", ", cumulative"):
            words = words.replace(less, "")
        parts += [text(16, y + 5, words, size=13), line(at(low), y, at(high), y, SOFT if open_ else BLUE, 3),
                  f'<circle cx="{at(one["ours"]):.1f}" cy="{y}" r="4" fill="{SOFT if open_ else BLUE}"/>',
                  text(674, y + 5, f"{100 * one['ours']:+.1f} points".replace("-", "−"), "end", size=13),
                  text(692, y + 5, {"holds": "settled", "undecided": "open"}.get(one["verdict"], "refuted"), fill=SOFT if open_ else BLUE, weight="bold", size=13)]
    bottom = 64 + 26 * len(claims) - 8
    parts += [line(440, 44, 440, bottom, INK, 1, "4 3"), text(440, 34, "0: no difference", "middle", SOFT, size=13),
              text(16, 34, f"mean of {len(study['seeds'])} seeds, 95 % interval", weight="bold")]
    return card("For each comparison of two trained models: the mean advantage over the seeds as a dot, its 95 percent "
                "interval as a bar, and whether the bar crosses zero", bottom + 16, parts)


PICTURES = (method, sigmoid, pairs, adapters, intervals)


def draw():
    """{file name: SVG}"""
    return {f"{picture.__name__}.svg": picture() for picture in PICTURES}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    for name, picture in draw().items():
        (settings.out / name).write_text(picture, encoding="utf-8")
        print(settings.out / name)


if __name__ == "__main__":
    script.run(main)
