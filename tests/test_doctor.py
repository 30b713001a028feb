"""`bin/doctor` on this machine, which can make and serve a release, and what it says where something is missing."""

import json
import socket
from pathlib import Path

import pytest
from conftest import run_command
from test_triton_server import add_version, onnx_model, point_at

from pipeline import doctor
from pipeline.doctor import Diagnosis, Finding, Place
from pipeline.triton import server


def finding(diagnosis: Diagnosis, subject: str) -> Finding:
    (found,) = (finding for finding in diagnosis.findings if finding.subject == subject)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data", str(tmp_path / "models"))


def test_where_all_is_there_it_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_command("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    diagnosis = Diagnosis.model_validate_json(done.stdout)
    assert diagnosis.missing == ()
    assert {finding.subject for finding in diagnosis.findings} == doctor._CHECKS.keys()
    assert "1437 images" in finding(diagnosis, "data").found
    assert "nothing yet" in finding(diagnosis, "repository").found
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_status_4_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run_command("doctor", "--model-repository", "file", cwd=tmp_path)
    assert done.returncode == 4
    assert "missing  repository" in done.stdout
    assert "--model-repository" in done.stdout
    assert "error: a release cannot be made and served here: repository" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_version_that_is_named_and_not_there_is_found(tmp_path: Path, place: Place) -> None:
    model = tmp_path / "models" / "digits"
    add_version(model, 1, "onnxruntime", onnx_model())
    point_at(model, 1)
    (model / "1").rename(model / "2")
    diagnosis = doctor.examine(place)
    assert diagnosis.missing == ("repository",)
    assert "digits: config.pbtxt names version 1, which is not there" in finding(diagnosis, "repository").found


def test_no_triton_and_no_room_are_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BINARY", place.data_dir / "tritonserver")
    monkeypatch.setattr(doctor, "_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "_MEMORY_BYTES", 1 << 60)
    diagnosis = doctor.examine(place)
    assert diagnosis.missing == ("embedded Triton", "disk")
    assert "is not installed" in finding(diagnosis, "embedded Triton").found
    assert finding(diagnosis, "disk").advice
    assert finding(diagnosis, "memory").state == "note"


def test_a_port_in_use_is_a_note(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "_USUAL_PORTS", {"--http-port": port})
        found = finding(doctor.examine(place), "ports")
    assert found.state == "note"
    assert str(port) in found.found


def test_what_cannot_be_found_out_hides_nothing_else(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Place) -> doctor._Found:
        raise RuntimeError("something")

    monkeypatch.setitem(doctor._CHECKS, "devices", broken)
    diagnosis = doctor.examine(place)
    assert diagnosis.missing == ("devices",)
    assert finding(diagnosis, "devices").found == "RuntimeError: something"
    assert len(diagnosis.findings) == len(doctor._CHECKS)
    assert json.loads(diagnosis.model_dump_json())["missing"] == ["devices"]
