"""What waits for a GPU runs, at a tiny size and on the CPU: `tests/device.py` and its profile."""

import json

import pytest

import device
from ddlib.runs import studies
from ddlib.runs.profile import profile
from ddlib.settings import Evaluation


def test_every_step_runs_once_and_the_next_call_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS", "1")
    call = ["--out", f"{tmp_path}", "--device", "cpu", "--scale", "tiny"]
    call += ["--profile", "smoke", "--study", "coresets"]
    assert device.main([*call, "--minutes", "0"]) == 1  # time is up before anything is begun
    assert not (tmp_path / "device.json").exists()
    assert device.main([*call, "--minutes", "5"]) == 0
    found = json.loads((tmp_path / "device.json").read_text())
    assert set(device.STEPS) < set(found) and found["suite"]["failed"] == []
    assert max(v for k, v in found["every_stage"].items() if k != "took") == 0  # one machine
    assert found["speeds"]["pull, launches"] > 10
    for name in device.STEPS:
        monkeypatch.setitem(device.STEPS, name, pytest.fail)
    assert device.main([*call, "--minutes", "5"]) == 0


def test_its_profile_is_judged_at_the_published_scale():
    asked = [
        run.settings for run in studies.main(profile("fashion-gpu")) if run.method != "full data"
    ]
    assert all(isinstance(of, Evaluation) and of.protocol == "dsa" for of in asked)
    assert {of.network.width for of in asked} == {128}
    assert max(getattr(of.of, "iterations", 0) for of in asked) == 5000
