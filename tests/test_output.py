"""Output folders that a merge must not touch."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mergekern.errors import OutputError
from mergekern.output import is_finished


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", listdir)  # root may read everything
    with pytest.raises(OutputError, match="cannot be read: Permission denied; choose another"):
        is_finished(tmp_path, "digest", ())


def test_a_folder_with_other_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds other files \(thesis.txt\); remove them"):
        is_finished(tmp_path, "digest", ())


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "none", "digest", ())
    assert not is_finished(tmp_path, "digest", ())
