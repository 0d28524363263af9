"""Files below a folder, and what is left out."""

import os

from egic import listing


def test_folders_are_listed_without_hidden_files(tmp_path):
    for name in ("b.png", "a/c.png", "a.txt", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to("b.png")
    found, left = listing.below(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/c.png", "a.txt", "b.png", "link.png"]
    assert not left and not listing.shown(left)


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refused(place):  # root may list every folder
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    found, left = listing.below(tmp_path)
    assert not found and listing.shown(left) == f"{tmp_path / 'closed'} (Permission denied)"


def test_many_are_counted(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").symlink_to("nowhere")
    names = ", ".join(f"{tmp_path / str(number)}.png (a broken link)" for number in range(3))
    assert listing.shown(listing.below(tmp_path)[1]) == f"{names} and 2 more"
