#!/usr/bin/env python3
"""Installs Inkwash into `.venv` beside this file when needed, and starts it. Needs nothing but Python itself.

The whole file keeps to Python 3.6 syntax: an old Python must be able to parse it, or it could not say that it is too old.
"""

import os
import sys

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)


def python_problem(version, is_64bit=True):
    """What is wrong with a Python of this version (a tuple), as text for the user; empty when it will do."""
    have = ".".join(str(part) for part in version[:3])
    wanted = "%d.%d to %d.%d" % (OLDEST_PYTHON + NEWEST_PYTHON)
    if tuple(version[:2]) < OLDEST_PYTHON:
        return (
            "Inkwash needs Python %s; this is Python %s.\n"
            "What to do: install Python 3.12 (Windows: the installer from python.org or `winget install Python.Python.3.12`; "
            "macOS: `brew install python@3.12`; Debian, Ubuntu: `apt install python3.12 python3.12-venv`), "
            "then start again with that Python: `python3.12 launch.py` (Windows: `py -3.12 launch.py`)."
            % (wanted, have)
        )
    if not is_64bit:
        return (
            "This is a 32-bit Python, and PyTorch exists only for 64-bit.\n"
            "What to do: install the 64-bit Python 3.12 and start again with it."
        )
    return ""


_PROBLEM = python_problem(sys.version_info, sys.maxsize > 2**32)
if _PROBLEM and __name__ == "__main__":
    sys.stderr.write(_PROBLEM + "\n")
    sys.exit(1)

import hashlib  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402

GB = 1000**3
ROOT = os.path.dirname(os.path.abspath(__file__))
STATE_VERSION = 1

# What installs the rest. hatchling and editables build the editable install without fetching a build environment.
TOOLS = ["pip==26.3", "uv==0.13.9", "hatchling==1.33.0", "editables==0.6"]

TORCH_CHOICES = ("auto", "cpu", "cuda", "rocm", "mps", "xpu", "skip")
NEEDED_GB = {"cpu": 3, "mps": 3, "cuda": 8, "rocm": 16, "xpu": 8, "skip": 2}
NEEDED_WITHOUT_TORCH_GB = 2
ROCM_BACKEND = "rocm7.2"

# A stage that runs makes the work of these stale.
MAKES_STALE = {
    "venv": ("tools", "torch", "packages", "pillow", "project", "check"),
    "torch": ("check",),
    "packages": ("pillow", "check"),
}

HELP = """Inkwash launcher: installs what is missing into .venv beside this file, then starts Inkwash.

  python launch.py                     start the app in the browser
  python launch.py COMMAND [options]   any Inkwash command (train, generate, doctor, ...); COMMAND --help explains it
  python launch.py --port 7861         options without a command go to the app (same as: ui --port 7861)
  python launch.py test [options]      install the test tools and run the tests; options go to pytest

Options of the launcher itself, before any command:
  --torch KIND     which PyTorch to install: auto, cpu, cuda (NVIDIA), rocm (AMD, Linux), mps (Apple), xpu (Intel),
                   skip (leave the one already in .venv alone). Remembered. The usual value, auto, looks at the machine.
  --extra NAME     also install an optional part, and remember it: %(extras)s. May be given several times.
  --reinstall      delete .venv and install everything again. Your pictures, LoRAs and runs are not in there.
  --help, -h       this text

Environment:
  INKWASH_TORCH         like --torch
  INKWASH_TORCH_INDEX   address of the package index to take PyTorch from, for instance a mirror of your company
  PIP_INDEX_URL etc.    respected by pip as usual, for all other packages

A start that was interrupted goes on where it stopped. The full record of what was installed is .venv/install.log.
"""


class LaunchError(Exception):
    """Something the user has to know about before Inkwash can start."""

    def __init__(self, message, fix="", log=""):
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.log = log

    def __str__(self):
        parts = [self.message]
        if self.fix:
            parts.append("What to do: " + self.fix)
        if self.log:
            parts.append("Full log: " + self.log)
        return "\n".join(parts)


class Options:
    """The launcher's own flags and what is left for Inkwash."""

    def __init__(self):
        self.torch = ""
        self.extras = []
        self.reinstall = False
        self.help = False
        self.rest = []


def parse_arguments(arguments):
    """Split the launcher's own flags, which come first, from the rest."""
    options = Options()
    left = list(arguments)
    while left:
        flag, has_value, value = left[0].partition("=")
        if flag in ("--torch", "--extra"):
            left.pop(0)
            if not has_value:
                if not left:
                    raise LaunchError("%s needs a value." % flag, "see `python launch.py --help`.")
                value = left.pop(0)
            if flag == "--torch":
                options.torch = _torch_choice(value, "--torch")
            else:
                options.extras.append(value)
        elif flag == "--reinstall":
            options.reinstall = True
            left.pop(0)
        elif flag in ("--help", "-h"):
            options.help = True
            left.pop(0)
        else:
            break
    options.rest = left
    return options


def _torch_choice(value, where):
    choice = value.strip().lower()
    if choice not in TORCH_CHOICES:
        raise LaunchError("%s: %r is not one of %s." % (where, value, ", ".join(TORCH_CHOICES)))
    return choice


def inkwash_arguments(rest):
    """Arguments for `python` that run what the user asked for, except `test`."""
    if not rest:
        rest = ["ui"]
    elif rest[0].startswith("-") and rest[0] != "--version":
        rest = ["ui"] + rest
    # -P: a folder named `trainer` or `app` where the user happens to stand must not be taken for ours.
    return ["-P", "-m", "trainer"] + rest


def pytest_arguments(rest, root=ROOT):
    """Arguments for `python` that run the tests: all of them in `tests/__main__.py`'s way, or as pytest's options say."""
    if not rest:
        return ["-m", "tests"]
    named = any(not item.startswith("-") and os.path.exists(os.path.join(root, item.split("::")[0])) for item in rest)
    return ["-m", "pytest"] + ([] if named else ["tests/"]) + list(rest)


def child_environment(environ):
    """The environment Inkwash runs in: UTF-8 everywhere, nothing is reported to anyone, hubs are not asked."""
    child = dict(environ)
    # Settings of another Python (ROS, Blender, an IDE) make ours import the wrong packages.
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        child.pop(name, None)
    child["PYTHONUTF8"] = "1"
    child["PYTHONNOUSERSITE"] = "1"
    child["GRADIO_ANALYTICS_ENABLED"] = "False"
    child["HF_HUB_DISABLE_TELEMETRY"] = "1"
    child["DISABLE_TELEMETRY"] = "YES"
    child["DO_NOT_TRACK"] = "1"
    child.setdefault("HF_HUB_OFFLINE", "1")
    if sys.platform == "darwin":
        child.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    return child


# ---------------------------------------------------------------------------------------------------- what to install


class Project:
    """What pyproject.toml and .constraints.txt ask for."""

    def __init__(self, root):
        import tomllib

        self.root = root
        self.constraints_path = os.path.join(root, ".constraints.txt")
        with open(os.path.join(root, "pyproject.toml"), "rb") as file:
            data = tomllib.load(file)
        self.table = data["project"]
        self.dependencies = list(self.table.get("dependencies", []))
        self.extras = {name: list(items) for name, items in self.table.get("optional-dependencies", {}).items()}
        self.overrides = list(data.get("tool", {}).get("uv", {}).get("override-dependencies", []))
        self.alone = list(data.get("tool", {}).get("inkwash", {}).get("without-dependencies", []))
        with open(self.constraints_path, encoding="utf-8") as file:
            self.constraints = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        self.torch = next((item for item in self.dependencies if _name(item) == "torch"), "torch")

    def without_torch(self, requirements):
        return [item for item in requirements if _name(item) != "torch"]


def _name(requirement):
    for position, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:position].lower()
    return requirement.lower()


def _digest(*inputs):
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:20]


class State:
    """Which stages are done, and for which inputs; `.venv/inkwash-state.json`, replaced whole at each change."""

    def __init__(self, path):
        self.path = path
        self.exists = os.path.exists(path)
        self.data = {"version": STATE_VERSION, "stages": {}, "torch": "", "device": "", "backend": "", "extras": []}
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            if found.get("version") == STATE_VERSION and isinstance(found.get("stages"), dict):
                self.data.update(found)
        except (OSError, ValueError, AttributeError):
            pass  # half-written or from another version: everything is checked again

    def done(self, stage, digest):
        return self.data["stages"].get(stage) == digest

    def begin(self, stage):
        for name in (stage, *MAKES_STALE.get(stage, ())):
            self.data["stages"].pop(name, None)
        self.save()

    def finish(self, stage, digest):
        self.data["stages"][stage] = digest
        self.save()

    def save(self):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        temporary = "%s.%d" % (self.path, os.getpid())
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.exists = True


# ------------------------------------------------------------------------------------------------------- the machine


class Device:
    """What PyTorch will compute on, why, and which uv backend serves it ("" = plain pip has the right build)."""

    def __init__(self, kind, reason, backend=""):
        self.kind = kind
        self.reason = reason
        self.backend = backend


def detect_device(choice):
    """The device to install PyTorch for: the user's choice, or what this machine has."""
    if choice == "skip":
        return Device("skip", "PyTorch is left as it is")
    _refuse_intel_mac()
    if choice != "auto":
        return _ASKED_DEVICES[choice]()
    return _find_cuda() or _find_rocm() or _find_mps() or _find_xpu() or _cpu("no supported graphics card found")


def _refuse_intel_mac():
    if sys.platform == "darwin" and _machine() == "x86_64":
        raise LaunchError(
            "PyTorch is no longer published for Macs with an Intel processor.",
            "use a Mac with an Apple processor or another computer; or install a PyTorch of your own into .venv "
            "and start with `--torch skip`. (On an Apple processor, this Python runs under Rosetta: install an arm64 one.)",
        )


def _machine():
    import platform

    return platform.machine().lower()


def _find_cuda():
    smi = _nvidia_smi()
    return nvidia_device(_output_of(smi), _output_of([*smi, "--query-gpu=compute_cap", "--format=csv,noheader"]))


def _find_rocm():
    if not sys.platform.startswith("linux"):
        return None
    is_there = "gfx" in _output_of(["rocminfo"]) or (os.path.isdir("/opt/rocm") and os.path.exists("/dev/kfd"))
    return _rocm() if is_there else None


def _find_mps():
    return Device("mps", "Apple processor") if sys.platform == "darwin" else None


def _find_xpu():
    return _xpu() if _has_intel_gpu() else None


def _rocm():
    return Device("rocm", "AMD graphics with ROCm", ROCM_BACKEND)


def _xpu():
    return Device("xpu", "Intel graphics", "xpu")


def _cpu(reason):
    # Only on x86-64 Linux does plain pip bring a CUDA build along.
    is_pc = sys.platform.startswith("linux") and _machine() in ("x86_64", "amd64")
    return Device("cpu", reason, "cpu" if is_pc else "")


def _asked_cuda():
    return _find_cuda() or Device("cuda", "as asked (no NVIDIA driver found here)", _cuda_backend((13, 0)))


def _asked_rocm():
    if not sys.platform.startswith("linux"):
        raise LaunchError("ROCm builds of PyTorch exist for Linux only.", "use `--torch cpu` on this system.")
    return _rocm()


def _asked_mps():
    found = _find_mps()
    if found is None:
        raise LaunchError("mps is for Macs with an Apple processor.", "use `--torch auto`.")
    return found


_ASKED_DEVICES = {
    "cuda": _asked_cuda,
    "rocm": _asked_rocm,
    "mps": _asked_mps,
    "xpu": _xpu,
    "cpu": lambda: _cpu("as asked"),
}


def nvidia_device(smi, capabilities):
    """Read what nvidia-smi printed; None where there is no card. Raises LaunchError when the driver is too old."""
    import re

    match = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", smi)
    if not match:
        return None
    cuda = (int(match.group(1)), int(match.group(2)))
    found = [float(item) for item in re.findall(r"^\s*(\d+\.\d+)\s*$", capabilities, re.MULTILINE)]
    needed = (13, 0) if found and max(found) >= 12 else (12, 6)
    if cuda < needed:
        raise LaunchError(
            "The NVIDIA driver is too old: it serves CUDA %d.%d, and PyTorch for this card needs %d.%d."
            % (cuda + needed),
            "update the NVIDIA driver (the newest for your card) and start again, or start with `--torch cpu`.",
        )
    backend = _cuda_backend(cuda)
    if cuda >= (13, 0) and found and min(found) < 7.5:
        backend = "cu126"  # CUDA 13 builds dropped Maxwell, Pascal and Volta cards
    return Device("cuda", "NVIDIA card, driver for CUDA %d.%d" % cuda, backend)


def _cuda_backend(cuda):
    if cuda < (13, 0):
        return "cu126"
    return "cu130" if os.name == "nt" else ""  # on Linux plain pip brings the CUDA 13 build


def _nvidia_smi():
    import shutil

    places = [
        os.path.join(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32", "nvidia-smi.exe"),
        "/usr/lib/wsl/lib/nvidia-smi",
    ]
    return [shutil.which("nvidia-smi") or next((place for place in places if os.path.exists(place)), "nvidia-smi")]


def _has_intel_gpu():
    if os.name == "nt":
        names = _output_of(["powershell", "-NoProfile", "-Command", "(Get-CimInstance Win32_VideoController).Name"])
        return "Intel(R) Arc" in names
    return "Intel" in _output_of(["xpu-smi", "discovery"]) or "level_zero:gpu" in _output_of(["sycl-ls"])


def _output_of(command):
    import subprocess

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


# ------------------------------------------------------------------------------------------------- checks beforehand


def check_disk(free_bytes, needed_gb, folder):
    """Raise when less than `needed_gb` GB are free."""
    if free_bytes < needed_gb * GB:
        raise LaunchError(
            "There is not enough room on the disk: %.1f GB are free, about %d GB are needed (%s)."
            % (free_bytes / GB, needed_gb, folder),
            "free some space, or move this folder to a bigger disk, and start again.",
        )


def check_writable(folder):
    """Raise when nothing can be written to `folder`."""
    import tempfile

    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LaunchError(
            "This folder cannot be written to: %s (%s)." % (folder, error.strerror or error),
            "move Inkwash to a folder of your own (not Program Files, not inside a zip), or change its owner, and start again.",
        ) from error


def check_venv_module():
    """Raise when this Python cannot make virtual environments."""
    import importlib.util

    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise LaunchError(
            "This Python cannot make virtual environments: its `venv` or `ensurepip` part is missing.",
            "Debian, Ubuntu: `apt install python3-venv` (or python%d.%d-venv). Elsewhere: install Python from python.org. "
            "Then start again." % sys.version_info[:2],
        )


def explain_failure(output):
    """(what went wrong, what to do) in words, from the last lines that pip or uv printed."""
    text = output.lower()
    for needles, message, fix in _FAILURES:
        if any(needle in text for needle in needles):
            return message, fix
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    last = (errors or lines or ["it ended without a word"])[-1]
    return "The installer stopped: %s" % last[:300], "read the log below; start again to try once more."


_FAILURES = (
    (
        ("no space left on device", "errno 28", "not enough space on the disk"),
        "The disk became full while installing.",
        "free some space and start again; what is already installed is kept.",
    ),
    (
        ("certificate_verify_failed", "certificate verify failed", "invalid peer certificate"),
        "The package index answered with a certificate this computer does not trust; a proxy or virus scanner may sit between.",
        "check date and time; in a company, point PIP_CERT at the company's certificate file, then start again.",
    ),
    (
        ("proxyerror", "proxy authentication required", "tunnel connection failed"),
        "The proxy refused the connection to the package index.",
        "check the HTTPS_PROXY setting, then start again.",
    ),
    (
        (
            "failed to establish a new connection",
            "temporary failure in name resolution",
            "name or service not known",
            "getaddrinfo failed",
            "nodename nor servname",
            "connection refused",
            "network is unreachable",
            "read timed out",
            "connecttimeout",
            "connection timed out",
            "connection reset",
            "max retries exceeded",
            "dns error",
            "error sending request",
            "incompleteread",
            "connection broken",
        ),
        "The package index cannot be reached.",
        "check the internet connection (in a company: set HTTPS_PROXY or PIP_INDEX_URL), then start again; it goes on where it stopped.",
    ),
    (
        ("hashes are required", "these packages do not match the hashes"),
        "A download arrived damaged.",
        "start again; if it comes back, empty pip's cache with `.venv` Python's `-m pip cache purge`.",
    ),
    (
        ("permission denied", "access is denied", "winerror 5", "winerror 32"),
        "A file of the installation is locked or may not be written.",
        "close Inkwash and everything that uses its folder (virus scanners too), then start again.",
    ),
    (
        ("no matching distribution found", "could not find a version", "no solution found"),
        "The package index has no fitting version of a package for this Python and system.",
        "check the internet connection, and INKWASH_TORCH_INDEX and PIP_INDEX_URL if you set them; use Python 3.12; start again.",
    ),
)


# --------------------------------------------------------------------------------------------------------- showing it


class Progress:
    """Numbered stages with seconds, and one line that moves (every 10 s a line where the output is no terminal)."""

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.live = bool(getattr(self.out, "isatty", lambda: False)())
        self.total = 0
        self.number = 0
        self.title = ""
        self.detail = ""
        self.started = 0.0
        self._shown = 0.0
        self._stop = None

    def note(self, text):
        self._clear()
        self._write(text + "\n")

    def start(self, title):
        import threading

        self.number += 1
        self.title, self.detail, self.started = title, "", time.monotonic()
        self._shown = self.started
        if self.live:
            self._stop = threading.Event()
            threading.Thread(target=self._tick, args=(self._stop,), daemon=True).start()
        else:
            self._write("[%d/%d] %s\n" % (self.number, self.total, title))

    def line(self, text):
        moved = moving_text(text)
        if moved:
            self.detail = moved
            if not self.live and time.monotonic() - self._shown > 10:
                self._shown = time.monotonic()
                self._write("      %4.0f s  %s\n" % (self._shown - self.started, self.detail))

    def end(self, mark, remark=""):
        self._halt()
        remark = ": " + remark if remark else ""
        self._write(
            "[%d/%d] %s %s (%.1f s)%s\n"
            % (self.number, self.total, self.title, mark, time.monotonic() - self.started, remark)
        )

    def _halt(self):
        if self._stop is not None:
            self._stop.set()
            self._stop = None
        self._clear()

    def _tick(self, stop):
        while not stop.wait(0.2):
            import shutil

            text = "[%d/%d] %s  %.0f s  %s" % (
                self.number,
                self.total,
                self.title,
                time.monotonic() - self.started,
                self.detail,
            )
            width = shutil.get_terminal_size((80, 20)).columns - 1
            self._write("\r" + text[:width].ljust(width))

    def _clear(self):
        if self.live:
            import shutil

            self._write("\r" + " " * (shutil.get_terminal_size((80, 20)).columns - 1) + "\r")

    def _write(self, text):
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        try:
            self.out.write(text.encode(encoding, "replace").decode(encoding, "replace"))
            self.out.flush()
        except (OSError, ValueError):
            pass  # nobody listens any more; the installation goes on


def moving_text(line):
    """The few words of an installer's line that a user may want to see move; empty for the rest."""
    words = line.split()
    if not words:
        return ""
    if words[0] == "Progress" and len(words) == 4 and words[1].isdigit() and words[3].isdigit():
        return "%.0f of %.0f MB" % (int(words[1]) / 1e6, int(words[3]) / 1e6) if int(words[3]) > 2e6 else ""
    if words[0] in ("Collecting", "Downloading", "Using", "Building", "Resolved", "Prepared", "Installed"):
        return " ".join(words[:6])
    if words[:2] == ["Installing", "collected"]:
        return "installing %d packages" % (len(words) - 3)
    if words[:2] == ["Processing", "Looking"]:
        return ""
    return ""


# ---------------------------------------------------------------------------------------------------------- the lock


class InstallLock:
    """One installation at a time. The system drops the lock when the process ends, however it ends."""

    def __init__(self, path, progress):
        self.path = path
        self.progress = progress
        self.file = None

    def __enter__(self):
        self.file = open(self.path, "a+b")  # held open as long as the lock
        told = False
        while not self._try():
            if not told:
                self.progress.note("Another start of Inkwash is installing just now; waiting for it ...")
                told = True
            time.sleep(0.3)
        return self

    def __exit__(self, *_):
        if self.file:
            self.file.close()
            self.file = None

    def _try(self):
        assert self.file
        try:
            if os.name == "nt":
                import msvcrt

                self.file.seek(0)
                msvcrt.locking(self.file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self.file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


# --------------------------------------------------------------------------------------------------------- installing


class Launcher:
    """Brings `.venv` into the state that pyproject.toml, .constraints.txt and the user's flags ask for."""

    def __init__(self, root=ROOT, environ=None, progress=None):
        self.root = root
        self.environ = dict(os.environ if environ is None else environ)
        self.progress = progress or Progress()
        self.venv = os.path.join(root, ".venv")
        self.log = os.path.join(self.venv, "install.log")
        self.python = os.path.join(self.venv, *(["Scripts", "python.exe"] if os.name == "nt" else ["bin", "python"]))
        self.project = Project(root)
        self.state = State(os.path.join(self.venv, "inkwash-state.json"))
        self._detected = {}
        self._lock = None

    # -- what is to be done

    def prepare(self, options):
        """Do all that is missing; returns at once when nothing is."""
        if not options.reinstall and not self.pending(options):
            return
        check_writable(self.root)
        with InstallLock(os.path.join(self.root, ".venv.lock"), self.progress) as self._lock:
            self.state = State(self.state.path)  # another start may have done the work while we waited
            pending = self.pending(options)
            if options.reinstall or pending:
                self._install(options)

    def pending(self, options):
        """Names of the stages that have to run."""
        return [name for name, _, digest, _ in self._stages(options) if not self.state.done(name, digest)]

    def _wanted_torch(self, options):
        """(choice, was it asked for just now)."""
        if options.torch:
            return options.torch, True
        from_environment = self.environ.get("INKWASH_TORCH", "")
        if from_environment:
            return _torch_choice(from_environment, "INKWASH_TORCH"), False
        return self.state.data["torch"] or "auto", False

    def _device(self, options):
        """The device, from the last installation where the wish is the same: asking the drivers takes seconds."""
        choice, just_now = self._wanted_torch(options)
        data = self.state.data
        if data["device"] and data["torch"] == choice and not (just_now and choice == "auto") and not options.reinstall:
            return Device(data["device"], "", data["backend"])
        if choice not in self._detected:
            self._detected[choice] = detect_device(choice)
        return self._detected[choice]

    def _extras(self, options):
        wanted = set(self.state.data["extras"]) | set(options.extras)
        unknown = sorted(wanted - set(self.project.extras))
        if unknown:
            known = ", ".join(sorted(self.project.extras))
            raise LaunchError("There is no optional part named %s." % ", ".join(unknown), "choose among: %s." % known)
        if options.rest[:1] == ["test"]:
            wanted.add("test")
        return sorted(wanted)

    def _stages(self, options):
        """(name, title, digest of the inputs, function) for each stage, in order."""
        project = self.project
        device = self._device(options)
        index = self.environ.get("INKWASH_TORCH_INDEX", "")
        own_torch = device.kind == "skip"
        dependencies = project.without_torch(project.dependencies) if own_torch else project.dependencies
        pins = project.without_torch(project.constraints) if own_torch else project.constraints
        # The Python that .venv was made from may have been upgraded or removed.
        base = os.path.realpath(self.python) if os.path.exists(self.python) else "missing"
        stages = [
            ("venv", "Making .venv", _digest(base), self._make_venv),
            ("tools", "Fetching the installer", _digest(TOOLS), self._install_tools),
            (
                "torch",
                "PyTorch for %s" % ("your own build" if own_torch else device.kind),
                _digest(device.kind, device.backend, index, project.torch),
                lambda: self._install_torch(device, index),
            ),
            (
                "packages",
                "The libraries Inkwash uses",
                _digest(dependencies, pins),
                lambda: self._install_requirements(dependencies, pins),
            ),
            # gradio pins pillow<13, but 12.x has critical holes (JPEG decoder heap overflow, CVE-2026-112403 and more) that only
            # 13 closes, and a data set is full of strangers' JPEGs. gradio runs on 13. pip knows no overrides, hence --no-deps.
            (
                "pillow",
                "Picture library with current security fixes",
                _digest(project.overrides),
                lambda: self._pip("install", "--no-deps", *project.overrides) if project.overrides else None,
            ),
            (
                "project",
                "Inkwash itself",
                _digest(self.root, project.table),
                lambda: self._pip("install", "--no-deps", "--no-build-isolation", "--editable", self.root),
            ),
            ("check", "Trying it out", _digest(device.kind), self._try_out),
        ]
        for extra in self._extras(options):
            wanted = project.extras[extra]
            stages.append(
                (
                    "extra-" + extra,
                    "Test tools" if extra == "test" else "Optional part: " + extra,
                    _digest(wanted, pins),
                    lambda wanted=wanted: self._install_requirements(wanted, pins),
                )
            )
        return stages

    # -- doing it

    def _install(self, options):
        check_venv_module()
        if sys.version_info[:2] > NEWEST_PYTHON:
            self.progress.note(
                "Note: Python %d.%d is newer than what Inkwash is tested with (up to %d.%d). If installing fails, use 3.12."
                % (sys.version_info[:2] + NEWEST_PYTHON)
            )
        if os.name == "nt" and len(self.root) > 120:
            self.progress.note(
                "Note: this folder's path is long; Windows may refuse some files. A short one such as C:\\Inkwash is safer."
            )
        device = self._device(options)
        self._claim_venv(options)
        self._check_disk(options, device)
        choice, _ = self._wanted_torch(options)
        self.state.data.update(torch=choice, device=device.kind, backend=device.backend)
        self.state.data["extras"] = [name for name in self._extras(options) if name != "test"]
        self.state.save()
        pending = self.pending(options)
        what = (
            "Installing Inkwash into %s; this happens once"
            if "venv" in pending
            else "Completing the installation in %s"
        )
        self.progress.note(what % self.venv + (" (%s: %s)." % (device.kind, device.reason) if device.reason else "."))
        self._log(
            "\n==== %s, Python %s, device %s, stages %s"
            % (time.strftime("%Y-%m-%d %H:%M:%S"), sys.version, device.kind, pending)
        )
        names = [name for name, _, _, _ in self._stages(options)]
        self.progress.total = sum(
            1 for name in names if name in pending or any(name in MAKES_STALE.get(p, ()) for p in pending)
        )
        for name in names:
            stage = next(item for item in self._stages(options) if item[0] == name)
            if not self.state.done(name, stage[2]):
                self._run_stage(options, *stage)

    def _run_stage(self, options, name, title, digest, work):
        self.state.begin(name)
        self.progress.start(title)
        mark, remark = "FAILED", ""
        try:
            remark = work() or ""
            mark = "done"
        except KeyboardInterrupt:
            mark = "stopped"
            raise
        finally:
            self.progress.end(mark, remark)
        if name == "venv":  # only now is it known what .venv's Python is
            digest = next(item[2] for item in self._stages(options) if item[0] == "venv")
        self.state.finish(name, digest)

    def _claim_venv(self, options):
        """Make `.venv` ours, or refuse: a `.venv` that this launcher did not make is not touched without being asked."""
        if os.path.islink(self.venv):
            raise LaunchError(".venv is a link to somewhere else: %s." % self.venv, "remove the link and start again.")
        foreign = os.path.isdir(self.venv) and os.listdir(self.venv) and not self.state.exists
        if foreign and not options.reinstall:
            raise LaunchError(
                "There is a .venv that Inkwash did not make: %s." % self.venv,
                "rename or delete it; or start with --reinstall, which deletes it.",
            )
        if options.reinstall and os.path.isdir(self.venv):
            remembered = {key: self.state.data[key] for key in ("torch", "extras")}
            self._delete_venv()
            self.state = State(self.state.path)
            self.state.data.update(remembered)
            options.reinstall = False
        os.makedirs(self.venv, exist_ok=True)

    def _delete_venv(self):
        import shutil

        try:
            shutil.rmtree(self.venv)
        except OSError as error:
            raise LaunchError(
                "The old .venv cannot be deleted: %s." % error,
                "close Inkwash and everything that uses its folder, then start again.",
            ) from error

    def _check_disk(self, options, device):
        import shutil

        pending = self.pending(options)
        if "torch" in pending:
            needed = NEEDED_GB[device.kind]
        elif "packages" in pending:
            needed = NEEDED_WITHOUT_TORCH_GB
        else:
            return
        check_disk(shutil.disk_usage(self.root).free, needed, self.root)

    def _make_venv(self):
        import shutil

        for entry in os.listdir(self.venv):
            path = os.path.join(self.venv, entry)
            if path not in (self.log, self.state.path):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
        self._checked([sys.executable, "-m", "venv", self.venv])

    def _install_tools(self):
        self._pip("install", "--constraint", self.project.constraints_path, "--upgrade", *TOOLS)

    def _install_torch(self, device, index):
        installed = self._torch_version()
        if device.kind == "skip":
            if not installed:
                raise LaunchError(
                    "`--torch skip` was chosen, but there is no PyTorch in .venv yet.",
                    "install yours with `%s -m pip install ...` and start again; or choose another --torch."
                    % self.python,
                )
            return "found " + installed
        if installed:  # the same version for another device would count as already installed
            self._pip("uninstall", "--yes", "torch")
        if index:
            self._pip("install", "--index-url", index, self.project.torch)
        elif device.backend and self._backend_reachable(device.backend):
            self._checked([*self._uv_install(device.backend), self.project.torch])
        else:
            if device.backend:
                self._say_fallback(device)
            self._pip("install", self.project.torch)
        return self._torch_version()

    def _uv_install(self, backend):
        return [self.python, "-m", "uv", "pip", "install", "--python", self.python, "--torch-backend", backend]

    def _backend_reachable(self, backend):
        """Ask for the build with short time limits first, so that an unreachable source costs seconds, not minutes."""
        hurried = dict(self._environment(), UV_HTTP_TIMEOUT="10", UV_HTTP_CONNECT_TIMEOUT="5", UV_HTTP_RETRIES="0")
        command = [*self._uv_install(backend), "--dry-run", "--no-deps", self.project.torch]
        code, _ = self._run(command, hurried, limit=60)
        return code == 0

    def _say_fallback(self, device):
        consequence = {
            "cpu": "That may be the much larger build for NVIDIA cards; it runs on the processor all the same.",
            "cuda": "It may not use the graphics card: check with `python launch.py doctor`.",
        }.get(device.kind, "It does not use the graphics card: training runs on the processor, slowly.")
        self.progress.note(
            "      PyTorch's own source for %s cannot be reached; taking the usual build from the package index instead.\n      %s"
            % (device.backend, consequence)
        )

    def _torch_version(self):
        code = "import importlib.metadata as m; print(m.version('torch'))"
        return _output_of([self.python, "-I", "-c", code]).strip()

    def _install_requirements(self, requirements, pins):
        pinned = os.path.join(self.venv, "inkwash-constraints.txt")
        with open(pinned, "w", encoding="utf-8") as file:
            file.write("\n".join(pins) + "\n")
        usual = [item for item in requirements if _name(item) not in self.project.alone]
        alone = [item for item in requirements if _name(item) in self.project.alone]
        if usual:
            self._pip("install", "--constraint", pinned, *usual)
        if alone:
            self._pip("install", "--no-deps", *alone)

    def _try_out(self):
        code, output = self._run(
            [self.python, "-P", "-m", "trainer.probe"], self._environment(), limit=300, cwd=self.root
        )
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if code != 0 or not lines:
            message, fix = explain_probe_failure(output)
            raise LaunchError(message, fix, self.log)
        found = json.loads(lines[-1])
        names = ", ".join(device["name"] for device in found["devices"])
        return "PyTorch %s computes on %s" % (found["torch"], names)

    # -- running things

    def _pip(self, *arguments):
        shown = ["--progress-bar", "raw"] if arguments[0] == "install" and self._pip_is_new() else []
        options = ["--disable-pip-version-check", "--no-input"]
        self._checked([self.python, "-m", "pip", arguments[0], *options, *shown, *arguments[1:]])

    def _pip_is_new(self):
        """The pip that a fresh .venv starts with may be too old for raw progress lines."""
        return self.state.done("tools", _digest(TOOLS))

    def _checked(self, command):
        code, output = self._run(command, self._environment())
        if code != 0:
            message, fix = explain_failure(output)
            raise LaunchError(message, fix, self.log)

    def _environment(self):
        environment = child_environment(self.environ)
        environment["PYTHONUNBUFFERED"] = "1"
        environment.pop("PIP_REQUIRE_VIRTUALENV", None)
        environment["VIRTUAL_ENV"] = self.venv
        return environment

    def _run(self, command, environment, limit=None, cwd=None):
        """Run a command, its output going to the log and the moving line: (exit code, the last 200 lines)."""
        import collections
        import subprocess
        import threading

        tail = collections.deque(maxlen=200)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write("\n$ %s\n" % " ".join(command))
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                # A pip that outlives a killed launcher keeps the lock, so that the next start waits for it.
                pass_fds=[self._lock.file.fileno()] if self._lock and self._lock.file and os.name != "nt" else [],
            )
            output = process.stdout
            assert output
            timer = threading.Timer(limit, process.kill) if limit else None
            if timer:
                timer.start()
            try:
                for raw in output:
                    line = raw.decode("utf-8", "replace").rstrip()
                    if not line.startswith("Progress "):
                        log.write(line + "\n")
                        log.flush()
                        tail.append(line)
                    self.progress.line(line)
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            finally:
                output.close()
                if timer:
                    timer.cancel()
            log.write("(exit code %d)\n" % code)
        return code, "\n".join(tail)

    def _log(self, text):
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(text + "\n")


def explain_probe_failure(output):
    """(what went wrong, what to do) when PyTorch was installed but does not work."""
    text = output.lower()
    if "winerror 126" in text or "winerror 1114" in text or "vcruntime" in text:
        return (
            "PyTorch cannot be loaded: the Microsoft Visual C++ runtime is missing.",
            "install the current Microsoft Visual C++ Redistributable (x64) and start again.",
        )
    if "illegal instruction" in text or "sigill" in text:
        return "This computer's processor is too old for PyTorch.", "use another computer; AVX2 is needed."
    lines = [line for line in output.splitlines() if line.strip()]
    return (
        "Inkwash was installed, but PyTorch does not work: %s"
        % (lines[-1][:300] if lines else "it ended without a word"),
        "start with `--reinstall`; if that does not help, with `--torch cpu`.",
    )


# --------------------------------------------------------------------------------------------------------------- main


def leave_own_venv(venv, arguments):
    """When started with .venv's own Python, start again with the Python it was made from: it may have to be replaced."""
    if os.path.normcase(os.path.realpath(sys.prefix)) != os.path.normcase(os.path.realpath(venv)):
        return
    base = getattr(sys, "_base_executable", "") or ""
    if not base or os.path.normcase(base) == os.path.normcase(sys.executable) or not os.path.exists(base):
        raise LaunchError(
            "launch.py was started with the Python inside .venv, which it may have to replace.",
            "leave the environment (`deactivate`) and start again with the system's Python.",
        )
    replace_process([base, os.path.abspath(__file__), *arguments], dict(os.environ))


def replace_process(command, environment, cwd=None):
    """Become another program (on Windows: run it and end with its exit code)."""
    if cwd:
        os.chdir(cwd)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)  # noqa: S606 - an argument list, no shell
    import subprocess

    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            continue  # the program gets it too and ends in its own way


def main(arguments, root=ROOT):
    """Install what is missing, then become Inkwash. Returns an exit code only when something is wrong."""
    try:
        options = parse_arguments(arguments)
        launcher = Launcher(root)
        if options.help:
            sys.stdout.write(
                HELP % {"extras": ", ".join(name for name in sorted(launcher.project.extras) if name != "test")}
            )
            return 0
        if options.reinstall or launcher.pending(options):
            leave_own_venv(launcher.venv, arguments)
        launcher.prepare(options)
        environment = child_environment(os.environ)
        if options.rest[:1] == ["test"]:
            replace_process([launcher.python, *pytest_arguments(options.rest[1:], root)], environment, cwd=root)
        else:
            replace_process([launcher.python, *inkwash_arguments(options.rest)], environment)
    except LaunchError as error:
        sys.stderr.write("\n%s\n" % error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. What is done is kept: the same command goes on from here.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
