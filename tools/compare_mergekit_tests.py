"""Run MergeKit's own tests with the plugin off and on, and compare every outcome.

Fetches MergeKit's source distribution with pip, makes two environments that share all packages of
the running one (MergeKit, torch, pytest), and gives only one of them this checkout and its start-up
files. That is a true "off": MERGEKIT_COLLAPSE=0 would still hook MergeKit.

Exit code 1 where any test ends differently, or fails for a method of the plugin's own. The source
distribution lacks `tests/common.py`, so the files that need it fail to be collected, in both.

    python tools/compare_mergekit_tests.py
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from scratch_environment import Environment, build_wheel, make_environment  # noqa: E402 - see above

from mergekit_collapse.merge_methods import NAMES  # noqa: E402 - likewise


def fetch_source(version: str, folder: Path) -> Path:
    command = ["download", "--quiet", "--no-deps", "--no-binary", "mergekit", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *command, f"mergekit=={version}"], check=True)
    [archive] = folder.glob("mergekit-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def outcomes(environment: Environment, source: Path, report: Path) -> dict[str, str]:
    """Test -> passed, failed, error or skipped."""
    # Outside the source tree: the installed MergeKit is meant, not the one beside the tests.
    arguments = ["--continue-on-collection-errors", "-q", "-p", "no:cacheprovider"]
    done = environment.run(
        "-m", "pytest", source / "tests", f"--rootdir={source}", *arguments,
        f"--junit-xml={report}", cwd=report.parent, PYTHONHASHSEED="0", timeout=3600,
    )  # fmt: skip
    if not report.exists():
        sys.exit(f"pytest wrote no report:\n{done.stdout}{done.stderr}")
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        marks = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = min(marks, default="passed")
    return found


def is_hooked(environment: Environment) -> bool:
    code = "import mergekit.config as c; print('compat' in c.MergeConfiguration.model_fields)"
    return environment.run("-c", code).stdout == "True\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="0.1.5", help="of MergeKit (default 0.1.5)")
    version = parser.parse_args().version
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = fetch_source(version, folder)
        off, on = make_environment(folder / "off"), make_environment(folder / "on")
        on.unpack(build_wheel(folder))
        if is_hooked(off) or not is_hooked(on):
            sys.exit(
                "the two environments are not what they should be: off must be unhooked, on hooked"
            )
        before = outcomes(off, source, folder / "off.xml")
        after = outcomes(on, source, folder / "on.xml")
    for name, found in (("off", before), ("on", after)):
        counts = ", ".join(
            f"{count} {what}" for what, count in sorted(Counter(found.values()).items())
        )
        print(f"plugin {name:3}: {counts}")
    # MergeKit tests every registered method, so those of the plugin are tested too.
    own = {test for test in after if test.endswith(tuple(f"[{name}]" for name in NAMES))}
    for test in sorted(own):
        print(f"  {test}: {after[test]}, of the plugin's own methods")
    different = [
        test
        for test in sorted(before | after)
        if (after[test] != "passed" if test in own else before.get(test) != after.get(test))
    ]
    for test in different:
        print(f"  {test}: {before.get(test)} without, {after.get(test)} with")
    print("no difference" if not different else f"{len(different)} tests differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
