"""Runs with trainer.compile=true, whose layers are traced but not made into machine code: that takes long."""

import shutil

import pytest
from torch._dynamo.utils import counters

from bitkd.config.load import load_config
from bitkd.errors import StoppedError
from bitkd.pipeline.runner import run
from bitkd.stages import compiling
from bitkd.stages.base import StudentModule
from tests.conftest import read_record, read_weights


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_fit_that_was_stopped_ends_like_an_uninterrupted_one(
    settings, finished, console, tmp_path, monkeypatch, accumulate
):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    more = ["trainer.compile=true", f"trainer.accumulate_grad_batches={accumulate}", "checkpoint.every_steps=1"]
    teacher = f"stages.teacher.checkpoint={finished / 'rte' / 'singlestage' / 'teacher'}"
    counters.clear()
    run(load_config(settings(tmp_path / "whole", "singlestage", teacher, *more)), console)
    assert counters["stats"]["unique_graphs"]
    overrides = settings(tmp_path / "stopped", "singlestage", teacher, *more)
    for folder in (tmp_path / "whole" / "store").glob("[!.]*"):
        if "1-bit" not in (folder / "stage.json").read_text():
            shutil.copytree(folder, tmp_path / "stopped" / "store" / folder.name)
    step = StudentModule.training_step

    def stop(self, batch, index):
        if index == 2 * accumulate + accumulate - 1:  # between two parts of a batch if it has some
            raise StoppedError("asked to stop")
        return step(self, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(StudentModule, "training_step", stop)
        with pytest.raises(StoppedError):
            run(load_config(overrides), console)
    run(load_config(overrides), console)
    assert any("single_binary goes on at step 2 of 4" in line for line in console.lines)
    assert read_weights(tmp_path / "stopped") == read_weights(tmp_path / "whole")
    assert read_record(tmp_path / "stopped", "singlestage", "single_binary") == read_record(
        tmp_path / "whole", "singlestage", "single_binary"
    )
