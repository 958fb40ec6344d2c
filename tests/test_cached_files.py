"""The cache's files: whole or not there, within a size, and listed and cleared by command."""

import os
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from mergekit_collapse import cached_files
from mergekit_collapse.cached_files import (
    LAYERED,
    OWN_SCORES,
    SIZE_VARIABLE,
    STATES,
    open_cached_files,
    size_limit,
)
from mergekit_collapse.cli import main
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.kept_values import KeptValues

DAY = 86_400


def key(number):
    return f"{number:064x}"


@pytest.fixture
def files():
    return open_cached_files(STATES)


def keys_in(files):
    return sorted(int(file.path.stem, 16) for file in files.found())


def used(files, number, days_ago):
    then = time.time() - days_ago * DAY
    os.utime(files.path(key(number)), (then, then))


def run(*arguments):
    return CliRunner().invoke(main, ["cache", *arguments])


def test_what_was_written_is_read(files):
    assert files.read(key(1)) is None
    files.write(key(1), b"one")
    files.write(key(1), b"two")
    assert files.read(key(1)) == b"two"
    assert os.listdir(files.path(key(1)).parent) == [f"{key(1)}.safetensors"]
    files.discard(key(1))
    files.discard(key(1))
    assert files.read(key(1)) is None


def test_a_write_that_fails_leaves_nothing(files, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cached_files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(key(1), b"one")
    assert os.listdir(files.path(key(1)).parent) == []


def test_the_least_recently_used_go_first(files):
    for number in range(4):
        files.write(key(number), bytes(10))
        used(files, number, days_ago=9 - number)
    files.read(key(0))  # a use makes the oldest the newest
    files.make_room(10, limit=40)
    assert keys_in(files) == [0, 2, 3]
    files.make_room(25, limit=40)
    assert keys_in(files) == [0]
    files.make_room(10, limit=20)
    assert keys_in(files) == [0]
    files.make_room(11, limit=20)
    assert keys_in(files) == []


def test_what_is_not_ours_is_neither_counted_nor_touched(files, tmp_path):
    files.write(key(1), bytes(10))
    folder = files.path(key(1)).parent
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / files.path(key(2)).name).write_bytes(bytes(99))
    others = [
        folder / "notes.txt",
        folder / f"{key(1)}.json",
        files.folder / f"{key(3)}.safetensors",  # at another place than ours
        folder / f"{'ab' + key(1)[2:]}.safetensors",
        files.folder.parent / "bases" / "model.safetensors",
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(bytes(99))
    (folder / files.path(key(2)).name).symlink_to(outside / files.path(key(2)).name)
    (files.folder / "cd").symlink_to(outside)
    assert keys_in(files) == [1]
    files.make_room(1, limit=0)
    assert run("clear").output == "0 files removed, 0 B freed\n"
    assert keys_in(files) == []
    assert all(other.exists() for other in others)
    assert len(os.listdir(outside)) == 1


def test_what_killed_writers_left_is_swept_once_it_is_old(files):
    files.write(key(1), b"one")
    folder = files.path(key(1)).parent
    old, new, other = (folder / f".{key(n)}.{n}.partial" for n in range(3))
    other = other.with_name(".other.partial")
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1, 1))
    files.make_room(0, limit=100)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 4 * 2**30),
        ("0", 0),
        ("123", 123),
        ("2GB", 2 * 10**9),
        ("2 g", 2 * 10**9),
        ("1.5KiB", 1536),
        ("512 MiB", 512 * 2**20),
        ("1TB", 10**12),
        (" 7 B ", 7),
    ],
)
def test_the_limit_is_a_size(monkeypatch, text, size):
    monkeypatch.setenv(SIZE_VARIABLE, text)
    assert size_limit() == size


@pytest.mark.parametrize(
    "text", ["-1", "nan", "2 giga", "GB", "1e9", "2,5GB", "inf", "٣GB", "9" * 30]
)
def test_a_limit_that_is_no_size_is_refused(monkeypatch, text):
    monkeypatch.setenv(SIZE_VARIABLE, text)
    told = f"{SIZE_VARIABLE}: got {text!r}; write a size such as 2GB"
    with pytest.raises(InvalidRecipeError, match=re.escape(told)):
        size_limit()
    found = run("list")
    assert found.exit_code == 2
    assert told in found.output


def test_the_list_shows_what_is_kept(files, own_cache, monkeypatch):
    monkeypatch.setenv(SIZE_VARIABLE, "1GB")
    assert run("list").output.startswith("0 files, 0 B in ")
    KeptValues(open_cached_files(OWN_SCORES)).put(
        key(1), {"score": 0.5, "model": "./a\x1b[31m", "what": "task sums"}
    )
    KeptValues(open_cached_files(LAYERED)).put(
        key(2), {"reason": None, "model": "./b", "what": "layer by layer"}
    )
    files.write(key(3), bytes(12_345))
    used(files, 3, days_ago=400)
    first, second, third, total = run("list").output.splitlines()
    today = time.strftime("%Y-%m-%d")
    assert first.startswith(today)
    assert {line.split("  ")[-1].strip() for line in (first, second)} == {
        "./a\\x1b[31m: task sums",
        "./b: layer by layer",
    }
    # Bytes that are no record are still files of ours.
    assert "12.3 kB  states      ?: ?" in third
    assert total.startswith("3 files, 12.")
    assert str(own_cache) in total
    assert total.endswith(f"states take 12.3 kB of at most 1.0 GB ({SIZE_VARIABLE})")


def test_clear_frees_all_or_what_was_not_used_for_days(files):
    for number in range(3):
        files.write(key(number), bytes(1000))
        used(files, number, days_ago=10 * number)
    assert run("clear", "--older-than", "15").output == "1 file removed, 1.0 kB freed\n"
    assert keys_in(files) == [0, 1]
    assert run("clear").output == "2 files removed, 2.0 kB freed\n"
    assert keys_in(files) == []
    for bad in ("-1", "nan", "soon"):
        assert run("clear", "--older-than", bad).exit_code == 2


def test_clear_says_what_it_cannot_remove(files, monkeypatch):
    for number in range(2):
        files.write(key(number), bytes(1000))
    unlink = cached_files.Path.unlink

    def stubborn(path, missing_ok=False):
        if path.stem == key(1):
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(cached_files.Path, "unlink", stubborn)
    found = run("clear")
    assert found.exit_code == 1
    assert "1 file removed, 1.0 kB freed; 1 cannot be removed: " in found.output
    assert "Permission denied" in found.output


_WRITER = """
import sys
from pathlib import Path
from mergekit_collapse.cached_files import CachedFiles
files, key = CachedFiles(Path(sys.argv[1]), ".safetensors"), "7" * 64
content = bytes([int(sys.argv[2])]) * 200_000
for number in range(150):
    if sys.argv[3] == "evict":
        files.make_room(1, limit=0)
        continue
    files.write(key, content)
    found = files.read(key)
    assert found is None or (len(found) == 200_000 and len(set(found)) == 1), len(found)
print("done")
"""


@pytest.mark.slow
def test_processes_that_write_read_and_evict_one_file_never_see_a_part(tmp_path):
    writing = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(number), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, what in enumerate(["write", "write", "evict"])
    ]
    for process in writing:
        out, err = process.communicate(timeout=120)
        assert (out, err, process.returncode) == ("done\n", "", 0)
    assert not list(tmp_path.rglob("*.partial"))
