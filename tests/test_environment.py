"""The environment check: ready here, and a mend for each thing that is not."""

import sys
from pathlib import Path

import pytest

from tutorial import environment

ROOT = Path(__file__).parent.parent


def test_packages_are_read_from_requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# a comment\npytest   # any version\npytest==0.0.1\nno-such-package>=1\n", encoding="utf-8")
    (_, found, any_fits), (_, same, other_fits), missing = environment.packages(path)
    assert found == same == pytest.__version__ and any_fits and not other_fits
    assert missing == ("no-such-package", None, False)
    assert all(fits for _, _, fits in environment.packages(ROOT / "requirements.txt"))


def test_what_fails_ends_with_its_mend(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        environment.main([])
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1 and lines[-1] == "2 to mend"
    failed = [line for line in lines if line.startswith("FAIL")]
    assert "virtual environment" in failed[0] and failed[0].endswith(f"-> {environment.SETUP}")
    assert "requirements.txt" in failed[1] and "README.md" in failed[1]
