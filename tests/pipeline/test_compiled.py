"""Runs with trainer.compile=true, whose layers are traced but not made into machine code: that takes long."""

import json

import pytest
from torch._dynamo.utils import counters

from bitkd.config.load import load_config
from bitkd.errors import StoppedError
from bitkd.pipeline.runner import run
from bitkd.stages import compiling
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import read_record, read_weights

PIPELINE = """
pipeline: {{name: singlestage}}
student: {{layers: [1, 3]}}
stages:
  teacher: {{kind: finetune, checkpoint: {teacher}}}
  init: {{kind: init, student: teacher}}
  binary: {{kind: single_stage, student: init, teacher: teacher, quant: {{weight_bits: 1, activation_bits: 8}}}}
"""


def test_a_compiled_fit_that_was_stopped_inside_an_accumulated_batch_ends_like_an_uninterrupted_one(
    settings, finished, console, tmp_path, monkeypatch
):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(PIPELINE.format(teacher=finished / "rte" / "singlestage" / "teacher"))
    more = ["trainer.compile=true", "trainer.accumulate_grad_batches=2", "checkpoint.every_steps=1"]
    whole, stopped = (load_config(settings(tmp_path / name, str(pipeline), *more)) for name in ("whole", "stopped"))
    counters.clear()
    run(whole, console)
    assert counters["stats"]["unique_graphs"]
    assert any("binary: the first step compiles the encoder layers" in line for line in console.lines)
    record = json.loads((tmp_path / "whole" / "rte" / "singlestage" / "binary" / "stage.json").read_text())
    assert 0 < record["seconds_before"] < record["seconds"]
    step = SingleStageDistillation.training_step

    def stop(self, batch, index):
        if index == 2 * 2 + 1:  # the second part of the third batch
            raise StoppedError("asked to stop")
        return step(self, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(SingleStageDistillation, "training_step", stop)
        with pytest.raises(StoppedError):
            run(stopped, console)
    run(stopped, console)
    assert "stage 3 of 3: binary goes on at step 2 of 4" in console.lines
    assert read_weights(tmp_path / "stopped") == read_weights(tmp_path / "whole")
    assert read_record(tmp_path / "stopped", "singlestage", "binary") == read_record(
        tmp_path / "whole", "singlestage", "binary"
    )
