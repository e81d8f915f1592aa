"""The picture that a row names: where it lies, and how it becomes 8-bit RGB.

Picture files come in more kinds than a vision tower takes: rotated by a note in the header, transparent,
16-bit, printed in CMYK, cut short. All of them end here, as one kind of image or as one line that names the
file.
"""

import os
import reprlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from amp_min.support.script import BadRow, UserError
from amp_min.support.storage import kind_of

MAX_PIXELS = 64_000_000          # a small file can unpack to gigabytes; 64 million pixels are 192 MB as RGB
MAX_RATIO = 100                  # processors scale the shorter side to 336 or so, and the longer one with it
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")       # of others, EPS would run Ghostscript


def image_path(row, jsonl_path, image_root=None):
    """Path of a row's picture: `row["image"]` below `image_root`, by default below the folder of the JSONL.

    Rows come from other people, so a path that leaves this folder is refused: absolute, by "..", or by a
    symbolic link. Raises BadRow; the file need not exist.
    """
    image, place = row["image"], f"{jsonl_path}: row {reprlib.repr(row['id'])}"
    root = os.path.realpath(Path(jsonl_path).parent if image_root is None else image_root)
    if os.path.isabs(image):
        raise BadRow(f"image is an absolute path; make it relative to {root}", place)
    try:
        path = os.path.realpath(os.path.join(root, image))
    except ValueError:           # a NUL character
        raise BadRow("image is no valid file name; correct it", place) from None
    if os.path.commonpath([root, path]) != root:
        raise BadRow(f"image leads out of its folder; move it below {root}, or give --image-root", place)
    return Path(path)


def open_image(path):
    """Read a picture as an RGB PIL.Image (first frame): upright, transparent parts on white, 16-bit grey
    scaled to 8.

    Color profiles are not applied, as in the image processors of CLIP and LLaVA. Raises UserError naming the
    file.
    """
    if not os.path.isfile(path):     # asked first: opening a named pipe would wait for ever
        raise UserError(f"picture is missing; there is no file {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if min(image.size) < 1 or image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise UserError(f"picture has {size} pixels, 1 to {MAX_PIXELS} are allowed; resize {path}")
            if max(image.size) > MAX_RATIO * min(image.size):
                raise UserError(f"picture is {image.width} x {image.height} pixels, a ratio above "
                                f"{MAX_RATIO} : 1; crop or replace {path}")
            return to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            kind = kind_of(file.read(512))
        problem = kind or f"in none of the formats {', '.join(FORMATS)}; replace it"
        raise UserError(f"picture is {problem}: {path}") from None
    # Pillow's decoders raise nearly anything for a broken file (OSError, SyntaxError, ValueError, IndexError,
    # ...).
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"picture cannot be read; replace {path}: {detail}") from error


def to_rgb(image):
    """A decoded Pillow image of any mode -> RGB."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion has cut instead of scaled; 65535 / 257 = 255 exactly.
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no fixed white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
