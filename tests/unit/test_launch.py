"""What a user notices of launch.py: clear messages, an interrupted installation that goes on, a quick second start."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="the stand-in for .venv's Python is a shell script")


def load_launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inkwash_launch", PROJECT / "launch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launch: Any = load_launch()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout, in a folder with spaces and letters of several scripts, as people have."""
    root = tmp_path / "Ink wash ü 训练"
    root.mkdir()
    shutil.copy(PROJECT / "launch.py", root)
    (root / ".constraints.txt").write_text("# pins\nsomething==1.0\n", encoding="utf-8")
    (root / "pyproject.toml").write_text(
        textwrap.dedent("""
            [project]
            name = "inkwash"
            version = "0"
            dependencies = ["torch==2.13.0", "something==1.0"]
            [project.optional-dependencies]
            heif = ["pillow-heif==1.8.1"]
            upscale = ["spandrel==0.4.2", "einops==0.8.2"]
            test = ["pytest"]
            [tool.uv]
            override-dependencies = ["pillow==13.0.0"]
            [tool.inkwash]
            without-dependencies = ["spandrel"]
        """),
        encoding="utf-8",
    )
    return root


class FakeLauncher(launch.Launcher):
    """Does everything but run pip, uv and PyTorch; `ran` lists what would have been run."""

    def __init__(self, root: Path, **environ: str) -> None:
        self.shown = io.StringIO()
        super().__init__(str(root), environ, launch.Progress(self.shown))
        self.ran: list[str] = []
        self.interrupt_at = ""

    def _run(self, command: list[str], environment: Any, limit: Any = None, cwd: Any = None) -> tuple[int, str]:
        said = " ".join(map(str, command))
        if self.interrupt_at and self.interrupt_at in said:
            raise KeyboardInterrupt
        self.ran.append(said)
        if "-m venv" in said:
            python = Path(self.python)
            python.parent.mkdir(parents=True, exist_ok=True)
            # Stands in for .venv's Python: prints its arguments and two settings it was given.
            python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "utf8=$PYTHONUTF8" "offline=$HF_HUB_OFFLINE"\n')
            python.chmod(0o755)
        if "trainer.probe" in said:
            return 0, json.dumps({"torch": "2.13.0", "devices": [{"name": "the processor"}]})
        return 0, ""

    def _torch_version(self) -> str:
        return "2.13.0" if any("torch==2.13.0" in said for said in self.ran) else ""


def options(*arguments: str) -> Any:
    return launch.parse_arguments(["--torch", "cpu", *arguments])


def installed(root: Path) -> FakeLauncher:
    launcher = FakeLauncher(root)
    launcher.prepare(options())
    return launcher


# ------------------------------------------------------------------------------------------------- checks beforehand


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_told_which_one_to_install(version: tuple[int, ...]) -> None:
    said = launch.python_problem(version)
    assert "needs Python 3.11" in said
    assert f"this is Python {version[0]}.{version[1]}" in said
    assert "install Python 3.12" in said


def test_a_fitting_python_is_not_bothered() -> None:
    assert launch.python_problem((3, 11, 0)) == ""
    assert "64-bit" in launch.python_problem((3, 12, 0), is_64bit=False)


def test_an_old_python_can_parse_the_whole_file() -> None:
    ast.parse((PROJECT / "launch.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_launcher_imports_the_standard_library_only() -> None:
    tree = ast.parse((PROJECT / "launch.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_a_full_disk_is_said_with_both_numbers() -> None:
    with pytest.raises(launch.LaunchError) as caught:
        launch.check_disk(1_200_000_000, 3, "/somewhere")
    assert "1.2 GB are free" in str(caught.value)
    assert "3 GB are needed" in str(caught.value)
    assert "/somewhere" in str(caught.value)
    launch.check_disk(3_500_000_000, 3, "/somewhere")


def test_a_full_disk_stops_before_anything_is_installed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 5 * 10**8))  # pyright: ignore
    launcher = FakeLauncher(checkout)
    with pytest.raises(launch.LaunchError, match=r"0\.5 GB are free"):
        launcher.prepare(options())
    assert launcher.ran == []


def test_debian_without_venv_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(launch.LaunchError, match="apt install python3-venv"):
        launch.check_venv_module()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(launch.LaunchError, match="cannot be written to") as caught:
        launch.check_writable(str(gone))
    assert str(gone) in str(caught.value)
    launch.check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_venv_of_someone_else_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "pyvenv.cfg").write_text("home = elsewhere\n")
    launcher = FakeLauncher(checkout)
    with pytest.raises(launch.LaunchError, match="did not make"):
        launcher.prepare(options())
    assert (checkout / ".venv" / "pyvenv.cfg").read_text() == "home = elsewhere\n"
    launcher.prepare(options("--reinstall"))
    assert not (checkout / ".venv" / "pyvenv.cfg").exists()


# -------------------------------------------------------------------------------------------------- when pip fails


def test_an_unreachable_index_is_one_sentence_with_the_log(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real pip, pointed at a port where nothing listens."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    environ = {
        **os.environ,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    launcher = launch.Launcher(str(checkout), environ, launch.Progress(io.StringIO()))
    os.makedirs(launcher.venv)
    launcher.python = sys.executable
    with pytest.raises(launch.LaunchError) as caught:
        launcher._pip("install", "--dry-run", "inkwash-needs-this-package")
    first, *rest = str(caught.value).splitlines()
    assert first == "The package index cannot be reached."
    assert rest[0].startswith("What to do: check the internet connection")
    assert rest[1] == f"Full log: {launcher.log}"
    assert "127.0.0.1" in Path(launcher.log).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk became full"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] ...", "certificate"),
        ("error: Request failed\n  Caused by: dns error: failed to lookup address", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no fitting version"),
        ("PermissionError: [WinError 5] Access is denied: 'c10.dll'", "locked"),
        ("fine\nERROR: Something nobody foresaw\nbye", "Something nobody foresaw"),
    ],
)
def test_failures_are_translated(printed: str, said: str) -> None:
    message, fix = launch.explain_failure(printed)
    assert said in message
    assert fix


def test_a_broken_pytorch_is_explained() -> None:
    message, fix = launch.explain_probe_failure(
        "OSError: [WinError 126] The specified module could not be found. c10.dll"
    )
    assert "Visual C++" in message
    assert "Redistributable" in fix


# ------------------------------------------------------------------------------------------------------- installing


def test_a_first_start_shows_numbered_stages_and_seconds(checkout: Path) -> None:
    launcher = installed(checkout)
    shown = launcher.shown.getvalue()
    assert "[1/7] Making .venv done (" in shown
    assert "[7/7] Trying it out done (" in shown
    assert "PyTorch 2.13.0 computes on the processor" in shown


def test_torch_comes_first_then_libraries_then_the_fixed_pillow(checkout: Path) -> None:
    ran = installed(checkout).ran
    torch = next(i for i, said in enumerate(ran) if said.endswith("torch==2.13.0") and "--dry-run" not in said)
    libraries = next(i for i, said in enumerate(ran) if "--constraint" in said and "something==1.0" in said)
    pillow = next(i for i, said in enumerate(ran) if "--no-deps pillow==13.0.0" in said)
    assert torch < libraries < pillow


@POSIX_ONLY
def test_an_interrupted_installation_goes_on_where_it_stopped(checkout: Path) -> None:
    launcher = FakeLauncher(checkout)
    launcher.interrupt_at = "something==1.0"
    with pytest.raises(KeyboardInterrupt):
        launcher.prepare(options())
    assert "The libraries Inkwash uses stopped (" in launcher.shown.getvalue()

    again = FakeLauncher(checkout)
    again.prepare(launch.parse_arguments([]))  # the choice of --torch is remembered
    assert not any("-m venv" in said or said.endswith("torch==2.13.0") for said in again.ran)
    assert any("something==1.0" in said for said in again.ran)
    assert FakeLauncher(checkout).pending(launch.parse_arguments([])) == []


@POSIX_ONLY
def test_a_changed_pin_runs_only_what_depends_on_it(checkout: Path) -> None:
    installed(checkout)
    pyproject = checkout / "pyproject.toml"
    pyproject.write_text(
        pyproject.read_text(encoding="utf-8").replace("something==1.0", "something==1.1"), encoding="utf-8"
    )
    again = installed(checkout)
    assert any("something==1.1" in said for said in again.ran)
    assert any("pillow==13.0.0" in said for said in again.ran), "pip put the old pillow back for gradio"
    assert not any("-m venv" in said or said.endswith("torch==2.13.0") for said in again.ran)


@POSIX_ONLY
def test_another_device_replaces_torch_of_the_same_version(checkout: Path) -> None:
    installed(checkout)
    again = FakeLauncher(checkout)
    again._torch_version = lambda: "2.13.0+cpu"
    again.prepare(launch.parse_arguments(["--torch", "xpu"]))
    removed = next(i for i, said in enumerate(again.ran) if "uninstall" in said and said.endswith("torch"))
    assert any("--torch-backend xpu" in said and "--dry-run" not in said for said in again.ran[removed:])


def test_an_unreachable_torch_source_falls_back_to_pip_and_says_so(checkout: Path) -> None:
    launcher = FakeLauncher(checkout)
    launcher._backend_reachable = lambda backend: False
    launcher.prepare(launch.parse_arguments(["--torch", "xpu"]))
    assert "PyTorch's own source for xpu cannot be reached" in launcher.shown.getvalue()
    assert "training runs on the processor" in launcher.shown.getvalue()
    assert any("-m pip install" in said and said.endswith("torch==2.13.0") for said in launcher.ran)


def test_an_index_of_ones_own_is_used_for_torch_only(checkout: Path) -> None:
    launcher = FakeLauncher(checkout, INKWASH_TORCH="cpu", INKWASH_TORCH_INDEX="https://mirror.example/torch")
    launcher.prepare(launch.parse_arguments([]))
    with_index = [said for said in launcher.ran if "mirror.example" in said]
    assert len(with_index) == 1
    assert with_index[0].endswith("torch==2.13.0")


def test_skip_leaves_torch_alone(checkout: Path) -> None:
    launcher = FakeLauncher(checkout)
    with pytest.raises(launch.LaunchError, match="no PyTorch in"):
        launcher.prepare(launch.parse_arguments(["--torch", "skip"]))
    again = FakeLauncher(checkout)
    again._torch_version = lambda: "2.12.0+mine"
    again.prepare(launch.parse_arguments(["--torch", "skip"]))
    assert not any("torch==" in said for said in again.ran)


@POSIX_ONLY
def test_an_optional_part_is_remembered(checkout: Path) -> None:
    installed(checkout)
    again = FakeLauncher(checkout)
    again.prepare(launch.parse_arguments(["--extra", "heif"]))
    assert [said.split()[-1] for said in again.ran] == ["pillow-heif==1.8.1"]
    fresh = FakeLauncher(checkout)
    fresh.prepare(launch.parse_arguments(["--reinstall"]))
    assert any("pillow-heif==1.8.1" in said for said in fresh.ran)


def test_what_spandrel_asks_for_is_not_installed_with_it(checkout: Path) -> None:
    installed(checkout)
    again = FakeLauncher(checkout)
    again.prepare(launch.parse_arguments(["--extra", "upscale"]))
    usual, alone = again.ran
    assert usual.endswith("einops==0.8.2")
    assert alone.endswith("--no-deps spandrel==0.4.2")


def test_an_unknown_optional_part_names_the_known_ones(checkout: Path) -> None:
    with pytest.raises(launch.LaunchError, match="choose among: heif, test, upscale"):
        FakeLauncher(checkout).prepare(launch.parse_arguments(["--torch", "cpu", "--extra", "hief"]))


@POSIX_ONLY
def test_a_damaged_state_file_only_costs_a_new_installation(checkout: Path) -> None:
    launcher = installed(checkout)
    Path(launcher.state.path).write_text('{"version": 1, "stages": ', encoding="utf-8")
    assert "torch" in FakeLauncher(checkout).pending(options())
    installed(checkout)
    assert FakeLauncher(checkout).pending(options()) == []


@POSIX_ONLY
def test_two_starts_at_once_install_once(checkout: Path) -> None:
    import threading

    launchers = [FakeLauncher(checkout) for _ in range(2)]
    threads = [threading.Thread(target=launcher.prepare, args=(options(),)) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum("-m venv" in said for launcher in launchers for said in launcher.ran) == 1


@POSIX_ONLY
def test_a_pip_that_outlives_a_killed_launcher_is_waited_for(checkout: Path) -> None:
    code = """
        import os, launch
        launcher = launch.Launcher(os.getcwd())
        os.makedirs(launcher.venv)
        with launch.InstallLock(".venv.lock", launcher.progress) as launcher._lock:
            launcher._run(["sh", "-c", "echo started; sleep 2"], os.environ)
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=checkout)
    log = checkout / ".venv" / "install.log"
    while not (log.exists() and "\nstarted" in log.read_text(encoding="utf-8")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    shown = io.StringIO()
    with launch.InstallLock(str(checkout / ".venv.lock"), launch.Progress(shown)):
        assert "waiting for it" in shown.getvalue()


# ---------------------------------------------------------------------------------------------------------- devices

SMI = "| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: {} |"


@pytest.mark.skipif(os.name == "nt", reason="Windows takes cu130 through uv")
@pytest.mark.parametrize(
    ("cuda", "capability", "backend"), [("13.0", "8.9", ""), ("12.8", "8.9", "cu126"), ("13.0", "6.1", "cu126")]
)
def test_nvidia_driver_and_card_choose_the_build(cuda: str, capability: str, backend: str) -> None:
    device = launch.nvidia_device(SMI.format(cuda), capability + "\n")
    assert (device.kind, device.backend) == ("cuda", backend)


def test_an_old_nvidia_driver_is_told_to_update() -> None:
    with pytest.raises(launch.LaunchError, match=r"serves CUDA 12\.8, and PyTorch for this card needs 13\.0"):
        launch.nvidia_device(SMI.format("12.8"), "12.0\n")  # a card of the 50 series
    assert launch.nvidia_device("", "") is None


# ------------------------------------------------------------------------------------------------------ passing on


def test_arguments_pass_through() -> None:
    assert launch.inkwash_arguments([])[-2:] == ["trainer", "ui"]
    assert launch.inkwash_arguments(["train", "--rank", "8"])[-4:] == ["trainer", "train", "--rank", "8"]
    assert launch.inkwash_arguments(["--port", "7861"])[-4:] == ["trainer", "ui", "--port", "7861"]
    parsed = launch.parse_arguments(["--torch=cpu", "--extra", "heif", "train", "--torch", "mine", "--help"])
    assert parsed.rest == ["train", "--torch", "mine", "--help"]
    assert not parsed.help


def test_test_runs_pytest_on_the_tests_folder_or_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    assert launch.pytest_arguments([], str(tmp_path)) == ["-m", "tests"]
    assert launch.pytest_arguments(["-k", "disk"], str(tmp_path)) == ["-m", "pytest", "tests/", "-k", "disk"]
    assert launch.pytest_arguments(["tests::x", "-x"], str(tmp_path)) == ["-m", "pytest", "tests::x", "-x"]


def test_the_app_runs_in_utf8_and_reports_to_nobody() -> None:
    child = launch.child_environment({"PYTHONPATH": "/ros", "HF_HUB_OFFLINE": "0"})
    assert child["PYTHONUTF8"] == "1"
    assert child["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert child["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert child["HF_HUB_OFFLINE"] == "0", "the user's own wish counts"
    assert "PYTHONPATH" not in child


@pytest.mark.parametrize("arguments", [["--torch", "gpu"], ["--torch"]])
def test_a_wrong_flag_is_explained(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "launch.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "--torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_every_flag() -> None:
    done = subprocess.run([sys.executable, PROJECT / "launch.py", "--help"], capture_output=True, text=True, check=True)
    for flag in ("--torch", "--extra", "--reinstall", "--help", "INKWASH_TORCH", "INKWASH_TORCH_INDEX", "test"):
        assert flag in done.stdout


@POSIX_ONLY
def test_a_second_start_is_quick_and_hands_everything_over(checkout: Path, tmp_path: Path) -> None:
    installed(checkout)
    environment = {**os.environ, "LANG": "C"}
    environment.pop("HF_HUB_OFFLINE", None)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, checkout / "launch.py", "train", "--name", "mein Stil ü"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        seconds.append(time.monotonic() - started)
    assert done.stdout.split("\n")[:-1] == [
        *["-P", "-m", "trainer", "train", "--name", "mein Stil ü"],
        *["utf8=1", "offline=1"],
    ]
    assert done.stderr == ""
    assert min(seconds) < 0.6  # about 0.1 s on an idle machine


# ------------------------------------------------------------------------------------------------------- the project


def test_every_direct_dependency_is_pinned_exactly_and_agrees_with_the_constraints() -> None:
    project = launch.Project(str(PROJECT))
    wanted = [*project.dependencies, *(item for items in project.extras.values() for item in items), *launch.TOOLS[2:]]
    assert all(item.count("==") == 1 for item in wanted)
    assert set(item for item in wanted) <= set(project.constraints)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting gradio==6.31.0", "Collecting gradio==6.31.0"),
        ("Progress 734003200 of 2147483648", "734 of 2147 MB"),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("WARNING: whatever", ""),
        ("", ""),
    ],
)
def test_the_moving_line_shows_package_names(line: str, shown: str) -> None:
    assert launch.moving_text(line) == shown
