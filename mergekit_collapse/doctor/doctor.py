"""Whether a ``compat:`` block would be honoured here, and if not, why not."""

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from mergekit_collapse.doctor.probe import Probe, StockCommand, find_stock_command, probe
from mergekit_collapse.doctor.recipe import examine_recipe
from mergekit_collapse.doctor.symptom import Symptom
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.states.loader import choose_dtype
from mergekit_collapse.switch import SWITCH, Mode, gate_mode

_STOCK_COMMAND = "mergekit-yaml"
_PACKAGES = ("mergekit-collapse", "mergekit", "torch", "transformers", "pydantic")
# At least the first, below the second: pyproject.toml says the same.
_SUPPORTED_MERGEKIT = ((0, 1, 5), (0, 2))
_TESTED_MERGEKIT = ("0.1.5",)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, in the order in which to read it."""

    findings: tuple[Symptom, ...]

    @property
    def ok(self) -> bool:
        """False where a ``compat:`` block would be ignored."""
        return not any(finding.level == "problem" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1


def diagnose(recipe: Path | None = None) -> Diagnosis:
    """Ask a fresh interpreter, the one of the stock command, whether MergeKit is hooked in it.

    Not this process: a process that was started with this package's own command proves nothing
    about one that was not.
    """
    command = find_stock_command(_STOCK_COMMAND)
    asked = probe((command and command.interpreter) or sys.executable)
    findings = [*_commands(command, asked), *_hook(asked), _switch(), *_versions(), *_devices()]
    if recipe is not None:
        findings += examine_recipe(recipe)
    return Diagnosis(tuple(findings))


def _commands(command: StockCommand | None, asked: Probe) -> Iterator[Symptom]:
    if command is None:
        yield Symptom(
            "warning",
            "command",
            f"{_STOCK_COMMAND} is neither on the PATH nor beside {sys.executable}",
        )
    elif command.interpreter is None:
        yield Symptom(
            "warning",
            "command",
            f"{command.path} does not say which Python runs it; "
            f"what follows is about {sys.executable}",
        )
    elif asked.prefix and Path(asked.prefix).resolve() != Path(sys.prefix).resolve():
        yield Symptom(
            "warning",
            "command",
            f"{command.path} belongs to the environment {asked.prefix}, not to this one "
            f"({sys.prefix}); whether it is hooked is said for its own",
        )
    else:
        where = "" if command.on_path else " (not on the PATH)"
        yield Symptom("ok", "command", f"{command.path}{where} runs in this environment")


def _hook(asked: Probe) -> Iterator[Symptom]:
    if asked.hooked:
        yield Symptom(
            "ok", "hook", f"MergeKit is hooked in {asked.interpreter}, by {asked.startup_file}"
        )
        return
    if asked.error is not None:
        yield Symptom(
            "problem", "hook", f"MergeKit cannot be imported in {asked.interpreter}: {asked.error}"
        )
    else:
        missing = [
            what
            for what, there in (("the field `compat`", asked.field), ("the gate", asked.wrapped))
            if not there
        ]
        yield Symptom(
            "problem",
            "hook",
            f"MergeKit is NOT hooked in {asked.interpreter}: {' and '.join(missing)} missing, so a "
            f"`compat:` block is ignored. {_cause(asked)}",
        )
    if asked.stderr:
        yield Symptom("note", "hook", f"it said: {asked.stderr.splitlines()[-1]}")


def _cause(asked: Probe) -> str:
    if asked.startup_file is not None:
        return (
            f"The start-up file {asked.startup_file} ran: the package is damaged, install it again."
        )
    if asked.no_site:
        return "Python runs without `site` there (-S), so no start-up file is read."
    here = Path(__file__).resolve()
    if asked.no_user_site and here.is_relative_to(Path(asked.user_site).resolve()):
        return (
            "This package is in the user's site-packages, which are switched off "
            "(PYTHONNOUSERSITE, -s or a virtual environment)."
        )
    return (
        "No start-up file ran: install mergekit-collapse in that environment with "
        f"`{asked.interpreter} -m pip install mergekit-collapse` "
        "(a folder on PYTHONPATH is not enough)."
    )


def _switch() -> Symptom:
    try:
        mode = gate_mode()
    except InvalidRecipeError as error:
        return Symptom("problem", "switch", f"merges with a block will fail: {error}")
    meaning: dict[Mode, Symptom] = {
        "1": Symptom("ok", "switch", f"{SWITCH} is not set or 1: blocks are honoured"),
        "warn": Symptom("warning", "switch", f"{SWITCH}=warn: merges are measured, never refused"),
        "0": Symptom(
            "problem", "switch", f"{SWITCH}=0: every `compat:` block is ignored; unset it"
        ),
    }
    return meaning[mode]


def _versions() -> Iterator[Symptom]:
    versions = {name: _version(name) for name in _PACKAGES}
    said = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    yield Symptom("ok", "versions", f"Python {platform.python_version()}, {said}")
    found = versions["mergekit"]
    if found is None or found in _TESTED_MERGEKIT:
        return
    low, high = _SUPPORTED_MERGEKIT
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    state = (
        "untested" if low <= numbers < high else "outside the supported range 0.1.5 to below 0.2"
    )
    yield Symptom(
        "warning", "versions", f"mergekit {found} is {state}; tested: {', '.join(_TESTED_MERGEKIT)}"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Symptom]:
    def measured_in(device: str) -> str:
        return f"measures in {str(choose_dtype(device)).removeprefix('torch.')}"

    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    yield Symptom("ok", "devices", f"CPU: {threads} threads, {capability}, {measured_in('cpu')}")
    for index in range(torch.cuda.device_count()):
        name, device = f"cuda:{index}", torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield Symptom("ok", "devices", f"{name}: {device.name}, {memory}, {measured_in(name)}")
