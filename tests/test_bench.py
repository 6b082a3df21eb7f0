"""experiments/bench/training.py: what it measures is a real step of a stage."""

import importlib
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "experiments" / "bench"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def training(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("training")
    monkeypatch.setitem(module.SHAPES, "MiniLM-L6", TINY)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.mark.parametrize("name", ["plain", "w1a8", "stage1", "stage2"])
def test_a_loop_trains_its_student(training, name):
    loop = training.make_loop(training.Setting("cpu", "FP32", "MiniLM-L6", 2, 8, 1, main=False), name)
    student = loop.student if name == "plain" else loop.module.student
    before = [parameter.detach().clone() for parameter in student.base_model.encoder.parameters()]
    loop.step()
    assert not all(map(torch.equal, before, student.base_model.encoder.parameters()))


def test_the_parts_of_a_step_are_told_and_kept(training, tmp_path):
    threads = torch.get_num_threads()
    try:
        assert training.main(["sections", "--rows=2", "--length=8", "--repeats=2", "--precision=FP32"]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads((tmp_path / "build" / "bench" / "training.json").read_text())
    assert [figure["name"].rpartition(": ")[2] for figure in figures] == [
        "teacher",
        "student",
        "losses",
        "backward",
        "clipping",
        "optimizer",
    ]
    assert all(figure["target"] is None for figure in figures)
