"""Looks at the installation and the machine, and says what is wrong and what to do about it. Never imports torch.

PyTorch and the optional parts are looked at from processes of their own: a broken one must not take the doctor down.
"""

from __future__ import annotations

import importlib.metadata
import json as jsonlib
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil

from trainer.errors import InkwashError
from trainer.files import free_bytes
from trainer.paths import PROJECT, data_folder

Level = Literal["ok", "warning", "problem"]

GB = 1000**3
PROBE_TIMEOUT_S = 180.0
IMPORT_TIMEOUT_S = 60.0
OLDEST_PYTHON = (3, 11)
OLDEST_SAFE_PILLOW = 13
LOW_MEMORY_GB = 4.0
LOW_DISK_GB = 5.0
CRITICAL_DISK_GB = 1.0
SMALL_CARD_GB = 6.0

# Import name of each optional part, by the extra that installs it, and what goes without it.
OPTIONAL_PARTS = {
    "cuda": ("xformers", "attention falls back to PyTorch's own, which is about as fast"),
    "quant": ("bitsandbytes", "no 4-bit base models and no 8-bit optimisers"),
    "heif": ("pillow_heif", "pictures from phones in HEIC form cannot be read"),
    "jxl": ("pillow_jxl", "JPEG XL pictures cannot be read"),
    "faces": ("cv2", "no crops are proposed by faces"),
    "tagger": ("onnxruntime", "no WD14-family taggers for captions"),
    "upscale": ("spandrel", "no upscaling models for the hires fix"),
}
# What tries a part out where importing it is not enough, or is done in another way.
_TRIALS = {"spandrel": "from trainer.models.upscaler import require_spandrel; require_spandrel()"}


@dataclass(frozen=True)
class Finding:
    """One thing the doctor looked at; `remedy` says what to do when it is not ok."""

    level: Level
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """Everything found. `facts` holds versions and sizes only: no user name, no folder, nothing that is private."""

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def worst(self) -> Level:
        """The most serious level among the findings."""
        levels = {finding.level for finding in self.findings}
        return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"

    def to_json(self) -> str:
        """The report as JSON text, for bug reports and for `--json`."""
        found = [asdict(finding) for finding in self.findings]
        return jsonlib.dumps(
            {"worst": self.worst, "findings": found, "facts": self.facts}, indent=2, ensure_ascii=False
        )


def run(json: bool = False, data_dir: str | Path | None = None, self_test: bool = False) -> int:
    """Print the report and return the exit code: 0, or 1 where there is a problem (a warning alone is no failure)."""
    report = collect(data_dir, self_test=self_test)
    if json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        print_report(report)
    return 1 if report.worst == "problem" else 0


def collect(data_dir: str | Path | None = None, *, self_test: bool = False) -> DoctorReport:
    """Look at everything. Takes some seconds, because PyTorch is started once.

    Args:
        data_dir: the data folder, as for `trainer.paths.data_folder`.
        self_test: also compute on the device and run the embedded model once.
    """
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "packages": installed_packages(),
        "memory_total_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": psutil.virtual_memory().available,
    }
    findings = [
        check_python(sys.version_info[:2]),
        *check_packages(pinned_versions(), installed_version),
        check_pillow(installed_version("pillow")),
        check_memory(psutil.virtual_memory().total),
        *check_data_folder(data_folder(data_dir).root, facts),
        *_check_torch(facts, self_test=self_test),
        *check_optional_parts(_importable),
    ]
    return DoctorReport(tuple(findings), facts)


# ------------------------------------------------------------------------------------------------ the single checks


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether this Python is one that Inkwash is made for."""
    shown = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return Finding("problem", f"Python {shown} is too old.", "Install Python 3.12 and start launch.py with it.")
    return Finding("ok", f"Python {shown}")


def check_packages(pins: Mapping[str, str], version_of: Callable[[str], str]) -> list[Finding]:
    """Compare the installed versions with those Inkwash was tested with; a local part (`+cpu`) does not count."""
    missing = sorted(name for name in pins if not version_of(name))
    differing = sorted(name for name in pins if version_of(name) and version_of(name).split("+")[0] != pins[name])
    found: list[Finding] = []
    if missing:
        found.append(
            Finding(
                "problem", f"Packages are missing: {', '.join(missing)}.", "Start with `python launch.py --reinstall`."
            )
        )
    if differing:
        shown = ", ".join(f"{name} {version_of(name)} (tested: {pins[name]})" for name in differing)
        found.append(
            Finding(
                "warning",
                f"Packages differ from the versions Inkwash was tested with: {shown}.",
                "If something fails, start with `python launch.py --reinstall`.",
            )
        )
    return found or [Finding("ok", f"All {len(pins)} libraries have the tested versions")]


def check_pillow(version: str) -> Finding:
    """Whether the picture library has the security fixes of Pillow 13."""
    if not version:
        return Finding(
            "problem", "Pillow, the picture library, is missing.", "Start with `python launch.py --reinstall`."
        )
    if int(version.split(".")[0]) < OLDEST_SAFE_PILLOW:
        return Finding(
            "problem",
            f"Pillow {version} has security holes: opening a crafted picture can run foreign code.",
            "Start with `python launch.py --reinstall`, which brings Pillow 13.",
        )
    return Finding("ok", f"Pillow {version}")


def check_memory(total: int) -> Finding:
    """Whether the computer has enough main memory for Stable Diffusion 1.5."""
    if total < LOW_MEMORY_GB * GB:
        return Finding(
            "warning",
            f"The computer has {total / GB:.1f} GB of memory; a Stable Diffusion 1.5 model alone takes about 4 GB.",
            "Close other programs, use the embedded model, or train on another computer.",
        )
    return Finding("ok", f"{total / GB:.1f} GB of memory")


def check_data_folder(root: Path, facts: dict[str, Any]) -> list[Finding]:
    """Whether the data folder can be written to and has room."""
    existing = root
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return [
            Finding(
                "problem",
                f"The data folder cannot be written to: {root}.",
                "Change its permissions, or choose another folder with INKWASH_DATA or --data-dir.",
            )
        ]
    free = free_bytes(root)
    facts["disk_free_bytes"] = free
    return [Finding("ok", f"The data folder can be written to: {root}"), check_disk(free)]


def check_disk(free: int) -> Finding:
    """Whether the data folder's disk has room for training."""
    if free < LOW_DISK_GB * GB:
        return Finding(
            "problem" if free < CRITICAL_DISK_GB * GB else "warning",
            f"Only {free / GB:.1f} GB are free on the data folder's disk.",
            "Free some space, or choose a folder on another disk with INKWASH_DATA or --data-dir.",
        )
    return Finding("ok", f"{free / GB:.0f} GB free on the data folder's disk")


def check_probe(probe: Mapping[str, Any], *, nvidia_card: bool) -> list[Finding]:
    """Judge what `trainer.probe` found."""
    devices: list[dict[str, Any]] = probe["devices"]
    best = devices[0]
    memory = f" with {best['total_bytes'] / GB:.1f} GB" if best["total_bytes"] else ""
    found: list[Finding] = []
    if not best["fp32"]:
        remedy = "Install the build for this device: `python launch.py --torch auto`."
        found.append(
            Finding("problem", f"PyTorch {probe['torch']} sees {best['name']} but cannot compute on it.", remedy)
        )
    else:
        number_formats = " and ".join(name for name in ("bf16", "fp16") if best[name]) or "fp32 only"
        found.append(
            Finding(
                "ok",
                f"PyTorch {probe['torch']} computes on {best['name']}{memory} ({best['device']}, {number_formats})",
            )
        )
    if best["device"] == "cpu" and nvidia_card:
        found.append(
            Finding(
                "warning",
                "There is an NVIDIA card, but the installed PyTorch cannot use it.",
                "Install the build for it: `python launch.py --torch cuda`.",
            )
        )
    if best["total_bytes"] and best["total_bytes"] < SMALL_CARD_GB * GB:
        found.append(
            Finding(
                "warning",
                f"{best['name']} has only {best['total_bytes'] / GB:.1f} GB of memory.",
                "Choose a preset for little memory (4-bit base model, gradient checkpointing).",
            )
        )
    if best["fp32"] and not best["sdpa"]:
        found.append(
            Finding(
                "problem",
                "PyTorch's attention does not work on this device.",
                "Start with `python launch.py --reinstall`.",
            )
        )
    found += [_judge_trial(trial) for trial in probe.get("self_test", [])]
    return found


def check_optional_parts(import_problem: Callable[[str], str | None]) -> list[Finding]:
    """Look at each optional part; `import_problem(module)` is None when absent, "" when it works, else the error."""
    return [
        _judge_part(extra, module, without, import_problem(module))
        for extra, (module, without) in OPTIONAL_PARTS.items()
    ]


def _judge_part(extra: str, module: str, without: str, problem: str | None) -> Finding:
    add = f"`python launch.py --extra {extra}`"
    if problem is None:
        return Finding("ok", f"Optional part {module} is not installed: {without}. {add} adds it")
    if problem:
        remedy = f"Everything else works without it; {add} --reinstall tries again."
        return Finding(
            "warning", f"Optional part {module} is installed but cannot be used ({problem}): {without}.", remedy
        )
    return Finding("ok", f"Optional part {module} works")


def _judge_trial(trial: Mapping[str, Any]) -> Finding:
    if trial["ok"]:
        return Finding("ok", f"Self-test, {trial['name']}: {trial['detail']} ({trial['seconds']:.2f} s)")
    remedy = "Start with `python launch.py --reinstall`; if that does not help, with `--torch cpu`."
    return Finding("problem", f"Self-test, {trial['name']}, failed: {trial['detail']}", remedy)


# ------------------------------------------------------------------------------------------------ looking at things


def pinned_versions(project: Path = PROJECT) -> dict[str, str]:
    """The versions that pyproject.toml asks for, by package name; empty where Inkwash runs without its checkout."""
    try:
        table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError:
        return {}
    matches = (re.match(r"([\w.-]+)==([\w.]+)$", item) for item in table["project"]["dependencies"])
    return {match[1]: match[2] for match in matches if match}


def installed_version(name: str) -> str:
    """The version of an installed package, or ""."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed_packages() -> dict[str, str]:
    """Every installed package and its version, for bug reports."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def run_probe(*, self_test: bool = False, timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Any]:
    """What `trainer.probe` prints, from a process of its own.

    Raises: InkwashError: PyTorch crashed, failed to import, or did not answer in time.
    """
    command = [sys.executable, "-P", "-m", "trainer.probe", *(["--self-test"] if self_test else [])]
    fix = "Start with `python launch.py --reinstall`; if that does not help, with `python launch.py --torch cpu`."
    # The checkout on the path: the doctor must work even where the editable install is what is broken.
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUTF8": "1"}
    try:
        done = _quietly(command, timeout_s, environment)
    except subprocess.TimeoutExpired:
        raise InkwashError(f"PyTorch did not start within {timeout_s:.0f} s.", fix=fix) from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise InkwashError(f"PyTorch does not work: {_reason(done)}", fix=fix)
    return jsonlib.loads(lines[-1])


def _check_torch(facts: dict[str, Any], *, self_test: bool) -> list[Finding]:
    try:
        probe = run_probe(self_test=self_test)
    except InkwashError as error:
        return [Finding("problem", error.message, error.fix)]
    facts["torch"] = probe
    return check_probe(probe, nvidia_card=_has_nvidia_card())


def _has_nvidia_card() -> bool:
    try:
        return "GPU" in _quietly(["nvidia-smi", "-L"], 20.0).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def _importable(module: str) -> str | None:
    if not installed_version(module.replace("_", "-")):
        return None
    try:
        done = _quietly([sys.executable, "-P", "-c", _TRIALS.get(module, f"import {module}")], IMPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "importing it takes too long"
    return "" if done.returncode == 0 else _reason(done)


def _quietly(
    command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
        env=environment,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with exit code {done.returncode}"


# ------------------------------------------------------------------------------------------------------- showing it


def print_report(report: DoctorReport, out: TextIO | None = None) -> None:
    """Write the findings as text, each remedy under its finding, and a last line that sums up."""
    stream = out or sys.stdout
    marks = {"ok": "  ok     ", "warning": "  WARNING", "problem": "  PROBLEM"}
    for finding in report.findings:
        stream.write(f"{marks[finding.level]}  {finding.what}\n")
        if finding.level != "ok" and finding.remedy:
            stream.write(f"{' ' * 11}What to do: {finding.remedy}\n")
    stream.write(_summary(report) + "\n")


def _summary(report: DoctorReport) -> str:
    problems = sum(finding.level == "problem" for finding in report.findings)
    warnings = sum(finding.level == "warning" for finding in report.findings)
    if not problems and not warnings:
        return "Everything is in order."
    counted = [f"{problems} problem{'s' * (problems != 1)}"] * bool(problems)
    counted += [f"{warnings} warning{'s' * (warnings != 1)}"] * bool(warnings)
    return f"{' and '.join(counted)} found."
