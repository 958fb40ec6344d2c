"""What the start-up file adds to `python -c pass`.

Runs it with and without, in turns, so that a busy machine slows both alike, and prints the medians
of processor time and of time by the clock, and the modules that came in with it. Run it with the
Python of an environment; the package need not be installed, since only the two start-up files are
used, byte-compiled as pip installs them.

    python benchmarks/startup_cost.py --runs 200
"""

import argparse
import py_compile
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

STARTUP = Path(__file__).parent.parent / "startup"


def make_environment(folder: Path, startup_files: list[Path]) -> Path:
    """A bare virtual environment with these files in its site-packages; returns its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    for file in startup_files:
        copied = shutil.copy(file, packages)
        if file.suffix == ".py":
            py_compile.compile(copied)
    return folder / "bin" / "python"


def measure(python: Path) -> tuple[float, float]:
    """Milliseconds of processor time and by the clock of one start."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1000 * processor, 1000 * clock


def imported(python: Path) -> set[str]:
    done = subprocess.run(
        [python, "-X", "importtime", "-c", "pass"], check=True, capture_output=True, text=True
    )
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="pairs of runs (default 200)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        plain = make_environment(Path(folder, "without"), [])
        files = [
            STARTUP / "mergekit_collapse_startup.pth",
            STARTUP / "_mergekit_collapse_startup.py",
        ]
        hooked = make_environment(Path(folder, "with"), files)
        pairs = [(measure(plain), measure(hooked)) for _ in range(runs)]
        added = imported(hooked) - imported(plain)
    print(
        f"Python {sys.version.split()[0]}, {runs} pairs of `python -c pass`, milliseconds, medians"
    )
    print(f"{'':12}{'without':>10}{'with':>10}{'difference':>13}   middle half of the differences")
    for index, what in enumerate(("processor", "clock")):
        before = [pair[0][index] for pair in pairs]
        after = [pair[1][index] for pair in pairs]
        differences = sorted(b - a for a, b in zip(before, after, strict=True))
        low, high = differences[runs // 4], differences[-1 - runs // 4]
        medians = [statistics.median(each) for each in (before, after, differences)]
        cells = "".join(
            f"{each:{width}.2f}" for each, width in zip(medians, (10, 10, 13), strict=True)
        )
        print(f"{what:12}{cells}   {low:.2f} to {high:.2f}")
    print(f"modules imported by it: {', '.join(sorted(added))}")


if __name__ == "__main__":
    main()
