import json
import socket
import struct

import pytest

from octavo.core.assets import bundled
from octavo.tools import cli, doctor
from octavo.tools.doctor import Check


def weights(tmp_path, size: int, claimed: int | None = None):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    length = claimed if claimed is not None else len(header)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + b"\0" * size)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    weights(tmp_path, 8)
    return tmp_path


def test_a_whole_model(folder):
    assert doctor.check_model(str(folder)).status == "ok"


def test_broken_models(folder):
    assert doctor.check_model("/nowhere").status == "fail"
    weights(folder, 7)
    assert "its header says" in doctor.check_model(str(folder)).detail
    weights(folder, 8, claimed=10**9)
    assert "its header claims" in doctor.check_model(str(folder)).detail
    weights(folder, 8, claimed=5)
    assert "malformed header" in doctor.check_model(str(folder)).detail
    (folder / "model.safetensors").write_bytes(b"abc")
    assert "cut short" in doctor.check_model(str(folder)).detail
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in doctor.check_model(str(folder)).detail
    (folder / "tokenizer.json").unlink()
    assert doctor.check_model(str(folder)).status == "warn"
    (folder / "config.json").write_text("{")
    check = doctor.check_model(str(folder))
    assert check.status == "fail"
    assert check.fix


def test_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check = doctor.check_port(taken.getsockname()[1])
    assert check.status == "warn"
    assert "--port" in check.fix
    assert doctor.check_port(0).status == "ok"


def test_cheap_checks():
    assert doctor.check_python().status == "ok"
    assert "available" in doctor.check_memory().detail
    assert doctor.check_extension().status in ("ok", "warn")
    assert doctor.check_bundled().status == ("ok" if bundled() else "warn")


def test_output_and_exit_code(monkeypatch, capsys):
    found = [Check("a", "ok", "fine"), Check("b", "fail", "broken", "Mend it.")]
    monkeypatch.setattr(doctor, "examine", lambda model, port: found)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fail: b: Mend it." in out
    assert "cannot serve yet" in out
    assert cli.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["checks"][1]["fix"] == "Mend it."
    found.pop()
    assert cli.main(["doctor"]) == 0
