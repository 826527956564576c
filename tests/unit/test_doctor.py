"""The doctor says what is wrong and what to do about it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import doctor
from trainer.errors import InkwashError

GB = 1000**3


def device(
    name: str = "the processor", kind: str = "cpu", total: int | None = None, **overrides: Any
) -> dict[str, Any]:
    return {
        "device": kind,
        "name": name,
        "total_bytes": total,
        "fp32": True,
        "bf16": True,
        "fp16": False,
        "sdpa": True,
    } | overrides


def probe(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"torch": "2.13.0+cpu", "devices": list(devices), **more}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> doctor.DoctorReport:
    """The real doctor on this machine, once."""
    return doctor.collect(tmp_path_factory.mktemp("data"), self_test=True)


def test_this_installation_has_no_problem(report: doctor.DoctorReport) -> None:
    assert [finding for finding in report.findings if finding.level == "problem"] == []
    assert report.facts["torch"]["devices"][-1]["device"] == "cpu"
    assert any("Self-test, matrix product" in finding.what for finding in report.findings)


def test_the_report_is_json_with_package_versions(report: doctor.DoctorReport) -> None:
    data = json.loads(report.to_json())
    assert data["worst"] in ("ok", "warning")
    assert data["facts"]["packages"]["diffusers"]
    assert all(set(finding) == {"level", "what", "remedy"} for finding in data["findings"])


def test_asking_the_doctor_does_not_load_torch() -> None:
    code = "import sys, trainer.doctor; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=doctor.PROJECT, check=False).returncode == 0


def test_every_problem_is_printed_with_its_remedy() -> None:
    out = io.StringIO()
    findings = (doctor.Finding("ok", "fine"), doctor.Finding("problem", "It is broken.", "Mend it."))
    doctor.print_report(doctor.DoctorReport(findings), out)
    assert "PROBLEM  It is broken.\n" in out.getvalue()
    assert "What to do: Mend it." in out.getvalue()
    assert out.getvalue().endswith("1 problem found.\n")


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_only_problems_fail(
    level: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor.DoctorReport((doctor.Finding(level, "Something.", "Do this."),))
    monkeypatch.setattr(doctor, "collect", lambda *_, **__: found)
    assert doctor.run(json=True) == code
    assert json.loads(capsys.readouterr().out)["worst"] == level


@pytest.mark.parametrize(
    ("version", "level"), [("12.3.0", "problem"), ("", "problem"), ("13.0.0", "ok"), ("14.1", "ok")]
)
def test_an_unsafe_picture_library_is_a_problem(version: str, level: str) -> None:
    assert doctor.check_pillow(version).level == level


def test_versions_are_compared_without_their_local_part() -> None:
    pins = {"torch": "2.13.0", "peft": "0.21.2"}
    same = doctor.check_packages(pins, {"torch": "2.13.0+cpu", "peft": "0.21.2"}.__getitem__)
    assert [finding.level for finding in same] == ["ok"]
    missing, differing = doctor.check_packages(pins, {"torch": "2.12.0", "peft": ""}.__getitem__)
    assert (missing.level, differing.level) == ("problem", "warning")
    assert "peft" in missing.what
    assert "torch 2.12.0 (tested: 2.13.0)" in differing.what
    assert "--reinstall" in missing.remedy


def test_pins_are_those_of_the_project() -> None:
    assert doctor.pinned_versions()["torch"] == "2.13.0"


def test_a_full_disk_and_a_data_path_that_is_a_file(tmp_path: Path) -> None:
    assert doctor.check_disk(int(0.5 * GB)).level == "problem"
    assert doctor.check_disk(3 * GB).level == "warning"
    file = tmp_path / "file"
    file.write_text("x")
    found = doctor.check_data_folder(file, {})
    assert found[0].level == "problem"
    assert str(file) in found[0].what
    assert doctor.check_data_folder(tmp_path / "not" / "yet" / "there", {})[0].level == "ok"


def test_an_nvidia_card_that_torch_cannot_use_is_noticed() -> None:
    levels = [(finding.level, finding.remedy) for finding in doctor.check_probe(probe(device()), nvidia_card=True)]
    assert levels[0][0] == "ok"
    assert levels[1] == ("warning", "Install the build for it: `python launch.py --torch cuda`.")
    assert len(doctor.check_probe(probe(device()), nvidia_card=False)) == 1


def test_a_card_that_does_not_compute_or_is_small_is_noticed() -> None:
    broken = device("Old card", "cuda:0", 8 * GB, fp32=False)
    assert doctor.check_probe(probe(broken), nvidia_card=True)[0].level == "problem"
    small = device("Small card", "cuda:0", 4 * GB)
    assert "only 4.0 GB" in doctor.check_probe(probe(small), nvidia_card=True)[1].what


def test_a_failed_self_test_is_a_problem() -> None:
    trial = {"name": "embedded model on cpu", "ok": False, "seconds": 1.0, "detail": "RuntimeError: boom"}
    found = doctor.check_probe(probe(device(), self_test=[trial]), nvidia_card=False)
    assert found[-1].level == "problem"
    assert "boom" in found[-1].what


def test_optional_parts_absent_broken_and_working() -> None:
    states = {
        "xformers": None,
        "bitsandbytes": "ImportError: libcudart",
        "pillow_heif": "",
        "pillow_jxl": None,
        "cv2": None,
        "onnxruntime": "",
        "spandrel": None,
    }
    absent, broken, working, *_ = doctor.check_optional_parts(states.__getitem__)
    assert (absent.level, broken.level, working.level) == ("ok", "warning", "ok")
    assert "--extra cuda" in absent.what
    assert "libcudart" in broken.what


def test_a_pytorch_that_does_not_start_is_a_sentence_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands in for the probe, crashing or hanging."""
    crash = [sys.executable, "-c", "import sys; sys.exit('ImportError: libtorch.so: cannot open')"]
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **options: real(crash, **options))
    with pytest.raises(InkwashError, match=r"PyTorch does not work: ImportError: libtorch\.so") as caught:
        doctor.run_probe()
    assert "--reinstall" in caught.value.fix
    hang = [sys.executable, "-c", "import time; time.sleep(30)"]
    monkeypatch.setattr(subprocess, "run", lambda _, **options: real(hang, **options))
    with pytest.raises(InkwashError, match="did not start within 0 s"):
        doctor.run_probe(timeout_s=0.3)
