"""Folders that are whole or not there: what is kept, what is skipped, what is never replaced."""
import pytest

from amp_min.support import folders
from amp_min.support.script import UserError

FACTS = {"steps": 3, "sha256 of in": "ab"}


def fill(path, text, stop=False):
    with folders.whole_folder(path, FACTS) as folder:
        (folder / "weights").write_text(text, encoding="utf-8")
        if stop:
            raise KeyboardInterrupt


def test_an_interruption_leaves_the_previous_folder_whole(tmp_path):
    path = tmp_path / "model"
    fill(path, "old")
    with pytest.raises(KeyboardInterrupt):
        fill(path, "half", stop=True)
    assert (path / "weights").read_text(encoding="utf-8") == "old"
    fill(path, "new")
    assert (path / "weights").read_text(encoding="utf-8") == "new" and list(tmp_path.iterdir()) == [path]


def test_resume_finds_only_a_folder_made_from_the_same(tmp_path):
    path = tmp_path / "model"
    assert not folders.folder_is_made(path, FACTS, resume=True)
    fill(path, "x")
    assert folders.folder_is_made(path, FACTS, resume=True)
    assert not folders.folder_is_made(path, FACTS, resume=False)
    assert not folders.folder_is_made(path, FACTS | {"steps": 4}, resume=True)


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not folders.folder_is_made(tmp_path / "empty", FACTS, resume=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for name in "photos", "file":
        with pytest.raises(UserError, match=f"{name}: is there already, and not of our making"):
            folders.folder_is_made(tmp_path / name, FACTS, resume=True)
