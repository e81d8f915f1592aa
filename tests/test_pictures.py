"""Pictures: each becomes upright 8-bit RGB or one line that names the file; paths stay below their root."""
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amp_min.support import pictures
from amp_min.support.script import BadRow, UserError

ROW = {"id": "scene-000017"}
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image, name="p.png", **options):
    """The pixels of a picture's first row, saved and opened again."""
    memory = io.BytesIO()
    image.save(memory, name.split(".")[1], **options)
    path = Path(os.environ["PICTURES"]) / name
    path.write_bytes(memory.getvalue())
    opened = pictures.open_image(path)
    assert opened.mode == "RGB"
    return [opened.getpixel((x, 0)) for x in range(opened.width)]


def test_every_kind_of_picture_becomes_upright_8_bit_rgb(tmp_path, monkeypatch):
    monkeypatch.setenv("PICTURES", str(tmp_path))
    palette, clear, turned = Image.new("P", (2, 1)), Image.new("RGBA", (3, 1),
                                                               (255, 0, 0, 0)), Image.new("RGB", (3, 2))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    assert pixels(palette) == [(0, 0, 255), RED]
    assert pixels(palette, transparency=1) == [(0, 0, 255), WHITE]
    assert pixels(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "c.tiff") == [RED]
    assert np.abs(np.subtract(pixels(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "c.jpeg")[4],
                              RED)).max() <= 3
    assert pixels(Image.new("L", (1, 1), 100)) == [(100,) * 3] and pixels(Image.new("1", (1, 1),
                                                                                    1)) == [WHITE]
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535, 128]], dtype=np.uint16))
    assert pixels(deep) == [(0,) * 3, (100,) * 3, WHITE, (0,) * 3]
    clear.putpixel((1, 0), (255, 0, 0, 255))
    clear.putpixel((2, 0), (0, 0, 0, 51))           # a fifth of black on white: 255 * 0.8 = 204
    assert pixels(clear) == [WHITE, RED, (204,) * 3] and pixels(Image.new("LA", (1, 1), (0, 0))) == [WHITE]
    assert pixels(Image.new("RGB", (1, 1), RED), transparency=RED) == [WHITE]
    exif = Image.Exif()
    exif[0x0112] = 6            # the camera was turned: rotate by 90 degrees clockwise to view
    turned.putpixel((0, 0), RED)
    assert pixels(turned, exif=exif) == [(0,) * 3, RED]
    for kind in (np.int32, np.float32):
        with pytest.raises(UserError, match="32-bit values have no fixed white"):
            pixels(Image.fromarray(np.ones((2, 2), kind)), "i.tiff")


def test_files_that_are_no_usable_picture(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (201, 2)).save(tmp_path / "thin.png")
    (tmp_path / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name, problem in [("truncated.png", "cannot be read"), ("truncated.jpg", "truncated"),
                          ("text.png", "none of the formats"), ("empty.png", "none of the formats"),
                          ("missing.png", "missing"), (".", "missing"), ("pipe.png", "missing"),
                          ("thin.png", "is 201 x 2 pixels, a ratio above 100 : 1; crop or replace"),
                          ("lfs.png", "picture is a Git LFS pointer, .*git lfs pull")]:
        with pytest.raises(UserError, match=problem) as error:
            pictures.open_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1599)
    with pytest.raises(UserError, match="picture has 40 x 40 pixels, 1 to 1599 are allowed"):
        pictures.open_image(tmp_path / "whole.png")


@pytest.mark.filterwarnings("ignore")               # Pillow warns about damaged tags before it raises
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(kind=st.sampled_from(pictures.FORMATS),
       edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), min_size=1, max_size=3))
def test_a_damaged_picture_opens_or_is_a_user_error(tmp_path_factory, kind, edits):
    memory = io.BytesIO()
    Image.linear_gradient("L").resize((19, 17)).convert("RGB").save(memory, kind)
    data = memory.getvalue()
    for place, new in edits:
        data = data[:place] + new + data[place + 1:] if new else data[: place + 1]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        assert pictures.open_image(path).mode == "RGB"
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_image_paths_stay_below_their_root(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (tmp_path / "data-other").mkdir()
    (root / "out").symlink_to(tmp_path / "data-other")
    (root / "loop").symlink_to(root / "loop")
    jsonl = root / "rows.jsonl"
    for image in ("images/a.png", "images/../b.png", "./c.png", "ü.png"):
        assert pictures.image_path(ROW | {"image": image}, jsonl) == Path(os.path.realpath(root / image))
    with_root = pictures.image_path(ROW | {"image": "a.png"}, jsonl, image_root=tmp_path)
    assert with_root == Path(os.path.realpath(tmp_path)) / "a.png"
    for image, problem in [("/etc/passwd", "absolute"), ("../x.png", "leads out"), ("out/x.png", "leads out"),
                           ("images/../../data-other/x", "leads out"), ("a\0b", "no valid file name")]:
        with pytest.raises(BadRow, match=f"rows.jsonl: row 'scene-000017': image .*{problem}") as error:
            pictures.image_path(ROW | {"image": image}, jsonl)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        pictures.open_image(pictures.image_path(ROW | {"image": "loop"}, jsonl))
