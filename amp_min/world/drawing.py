"""Draws a scene of the picture world with Pillow: one flat icon per object, on a background that hints at the
theme.

The background is there on purpose: it tells a model which objects *usually* come along, and a model that
trusts that hint more than the picture will hallucinate them.
"""

from PIL import Image, ImageDraw

PIXELS = 96                 # side of a picture; the image processor shrinks it to the vision tower's size
CELL = PIXELS // 3          # a scene is a 3 x 3 grid of cells
OVERSAMPLE = 2              # draw larger, then shrink: smooth edges

RGB = {"red": (214, 48, 44), "blue": (40, 96, 210), "green": (38, 150, 62),
       "yellow": (244, 200, 28), "purple": (142, 62, 176), "black": (44, 44, 48)}
MAIN, DARK, PALE = "main", "dark", "pale"      # the object's color, a darker shade of it, near-white
SKY = {"street": (226, 230, 236), "sea": (222, 240, 250), "garden": (236, 246, 226),
       "home": (250, 240, 226), "park": (232, 244, 244)}
GROUND = {"street": (190, 190, 194), "sea": (168, 208, 232), "garden": (190, 220, 160),
          "home": (222, 196, 164), "park": (202, 214, 150)}

# Each icon is a list of strokes (shape, coordinates in a unit box, fill), painted in order.
ICONS = {
    "house": [("rect", (.18, .45, .82, .92), MAIN), ("poly", (.06, .48, .5, .08, .94, .48), DARK), ("rect", (.42, .62, .58, .92), PALE)],
    "tree": [("rect", (.43, .6, .57, .95), DARK), ("poly", (.5, .04, .9, .66, .1, .66), MAIN)],
    "car": [("poly", (.25, .5, .36, .26, .68, .26, .8, .5), DARK), ("rect", (.04, .48, .96, .74), MAIN),
            ("oval", (.14, .62, .38, .88), DARK), ("oval", (.62, .62, .86, .88), DARK)],
    "boat": [("poly", (.04, .62, .96, .62, .78, .9, .22, .9), MAIN), ("rect", (.47, .12, .52, .62), DARK), ("poly", (.54, .14, .86, .56, .54, .56), PALE)],
    "sun": [("poly", (.5, 0, .58, .3, .42, .3), DARK), ("poly", (.5, 1, .58, .7, .42, .7), DARK), ("poly", (0, .5, .3, .42, .3, .58), DARK),
            ("poly", (1, .5, .7, .42, .7, .58), DARK), ("oval", (.22, .22, .78, .78), MAIN)],
    "cloud": [("oval", (.04, .42, .5, .82), MAIN), ("oval", (.26, .2, .74, .72), MAIN), ("oval", (.5, .42, .96, .82), MAIN)],
    "duck": [("oval", (.08, .44, .8, .88), MAIN), ("oval", (.58, .14, .9, .5), MAIN), ("poly", (.86, .28, 1, .36, .86, .42), DARK)],
    "flower": [("rect", (.47, .5, .53, .96), DARK), ("oval", (.34, .04, .66, .34), MAIN), ("oval", (.34, .36, .66, .66), MAIN),
               ("oval", (.14, .2, .46, .5), MAIN), ("oval", (.54, .2, .86, .5), MAIN), ("oval", (.4, .25, .6, .45), PALE)],
    "cat": [("poly", (.2, .1, .42, .32, .18, .44), DARK), ("poly", (.8, .1, .58, .32, .82, .44), DARK), ("oval", (.16, .22, .84, .88), MAIN),
            ("oval", (.32, .44, .42, .54), PALE), ("oval", (.58, .44, .68, .54), PALE)],
    "chair": [("rect", (.2, .06, .32, .94), MAIN), ("rect", (.2, .5, .8, .62), MAIN), ("rect", (.68, .6, .8, .94), DARK)],
    "cup": [("oval", (.56, .34, .94, .72), DARK), ("oval", (.66, .44, .84, .62), PALE), ("rect", (.14, .24, .7, .84), MAIN)],
    "lamp": [("rect", (.46, .4, .54, .9), DARK), ("poly", (.32, .08, .68, .08, .88, .46, .12, .46), MAIN), ("rect", (.28, .86, .72, .94), DARK)],
    "dog": [("rect", (.1, .42, .74, .7), MAIN), ("rect", (.12, .68, .24, .94), DARK), ("rect", (.6, .68, .72, .94), DARK),
            ("rect", (.62, .16, .96, .48), MAIN), ("rect", (.6, .14, .7, .4), DARK), ("rect", (0, .34, .12, .46), DARK)],
    "ball": [("oval", (.1, .1, .9, .9), MAIN), ("rect", (.12, .44, .88, .56), PALE)],
    "kite": [("poly", (.5, .02, .84, .36, .5, .74, .16, .36), MAIN), ("rect", (.48, .74, .52, 1), DARK), ("poly", (.36, .8, .64, .92, .64, .8, .36, .92), DARK)],
    "umbrella": [("pie", (.04, .1, .96, .98), MAIN), ("rect", (.47, .5, .53, .94), DARK), ("rect", (.36, .88, .53, .94), DARK)],
}


def draw(theme, groups):
    """A scene as an RGB Pillow image, PIXELS x PIXELS.

    groups: dicts with "kind", "color", "size" ("small" | "large") and "cells", a list of (row, column) in the
    grid.
    """
    side = PIXELS * OVERSAMPLE
    image = Image.new("RGB", (side, side), SKY[theme])
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, side * 2 // 3, side, side), fill=GROUND[theme])
    for group in groups:
        red, green, blue = RGB[group["color"]]
        fills = {MAIN: (red, green, blue), DARK: (red * 5 // 9, green * 5 // 9, blue * 5 // 9), PALE: (250, 250, 244)}
        width = CELL * OVERSAMPLE * (0.92 if group["size"] == "large" else 0.58)
        for row, column in group["cells"]:
            left = (column + 0.5) * CELL * OVERSAMPLE - width / 2
            top = (row + 0.5) * CELL * OVERSAMPLE - width / 2
            for shape, box, fill in ICONS[group["kind"]]:
                points = [(left + x * width, top + y * width) for x, y in zip(box[::2], box[1::2])]
                stroke = {"rect": pen.rectangle, "oval": pen.ellipse, "poly": pen.polygon}.get(shape)
                if stroke:
                    stroke(points, fill=fills[fill])
                else:
                    pen.pieslice(points, 180, 360, fill=fills[fill])
    return image.resize((PIXELS, PIXELS), Image.Resampling.BOX)
