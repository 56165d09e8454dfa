"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from earlybert import Refused
from earlybert.ticket.files import disk_errors, half_folder, remove_folder, remove_leftovers, write_atomically


@pytest.fixture(params=[0o022, 0o077])
def mask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_are_those_the_person_asks_for_everywhere_else(tmp_path: Path, mask: int) -> None:
    write_atomically(tmp_path / "file", b"1")
    with half_folder(tmp_path / "folder") as half:
        half.rename(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_shared_folder_hands_its_group_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    with half_folder(tmp_path / "folder") as half:
        assert half.stat().st_mode & stat.S_ISGID


def test_what_fails_half_way_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")

    def fail(path: str) -> None:
        Path(path).write_bytes(b"ne")
        Path(path).with_name("of the writer").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_a_kill_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    with half_folder(tmp_path / "folder") as half:
        kept = half.with_name(half.name)
        half.rename(tmp_path / "elsewhere")
        kept.mkdir()
        (kept / "part").touch()
        (tmp_path / "elsewhere").rename(tmp_path / "folder")
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_removed_with_all_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").touch()
    remove_folder(tmp_path / "folder")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        *((number, "free some space") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((number, "get write access to it, or choose another folder") for number in (errno.EACCES, errno.EROFS)),
        *((number, "choose another folder") for number in (errno.ENOENT, errno.ENAMETOOLONG, errno.EIO)),
    ],
)
def test_a_failed_write_says_what_helps(number: int, remedy: str, tmp_path: Path) -> None:
    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    with pytest.raises(Refused) as refusal, disk_errors(tmp_path / "file"):
        fail("/elsewhere/.file.half")
    assert str(refusal.value) == f"{tmp_path}/file could not be written ({os.strerror(number)}); {remedy}."
    with pytest.raises(Refused) as refusal:
        write_atomically(tmp_path / "file", fail)
    said = f"{tmp_path}/file could not be written ({os.strerror(number)}); {remedy}; the file that was there before is"
    assert str(refusal.value) == f"{said} unchanged."


def test_a_failed_write_of_safetensors_says_what_helps(tmp_path: Path) -> None:
    """Its writer raises an error of its own, with the name of a half file in it."""

    def write(path: str) -> None:
        save_file({"a": torch.zeros(2)}, f"{path}.gone/file")

    with pytest.raises(Refused) as refusal:
        write_atomically(tmp_path / "file", write)
    assert "file could not be written (No such file or directory); choose another folder;" in str(refusal.value)
