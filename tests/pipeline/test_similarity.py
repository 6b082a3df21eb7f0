"""A sentence similarity task through a pipeline whose teacher is a given sentence encoder."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torchmetrics.functional import spearman_corrcoef

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.pipeline.runner import run
from tests.conftest import WORDS, make_settings

CPU = "trainer.accelerator=cpu"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, tiny_task):
    """A run on pairs that share a part of their words, with a student of half the width."""
    folder = tmp_path_factory.mktemp("similarity")
    for name, count in (("train", 40), ("dev", 24)):
        pairs = [(WORDS[i % 9 : i % 9 + 5], WORDS[i % 9 + i % 4 : i % 9 + 5]) for i in range(count)]
        lines = [f"{' '.join(one)}\t{' '.join(other)}\t{5 - i % 4}" for i, (one, other) in enumerate(pairs)]
        (folder / f"{name}.tsv").write_text("\n".join(["first\tsecond\tscore", *lines]) + "\n")
    definition = {
        "name": "pairs",
        "kind": "sentence_similarity",
        "text": ["first", "second"],
        "metric": "spearman",
        "metrics": ["spearman"],
        "files": {"dev": {"dev": "dev.tsv"}, "label": "score"},
    }
    (folder / "pairs.yaml").write_text(yaml.safe_dump({"task": definition}))
    quant = {"weight_bits": 1, "activation_bits": 8}
    stages = {
        "teacher": {"kind": "finetune", "checkpoint": str(tiny_bert)},
        "init": {"kind": "init", "student": "teacher"},
        "single": {"kind": "single_stage", "student": "init", "teacher": "teacher", "quant": quant},
    }
    (folder / "short.yaml").write_text(yaml.safe_dump({"pipeline": {"name": "short"}, "stages": stages}))
    more = [f"task={folder / 'pairs.yaml'}", f"data.dir={folder}", "student.width=0.5", "train.max_steps=2"]
    settings = make_settings(tiny_bert, tiny_task, folder / "runs", folder / "short.yaml", *more)

    class Silent:
        def print(self, text):
            pass

    run(load_config(settings), Silent())
    return folder / "runs" / "pairs" / "short"


def test_a_given_encoder_teaches_a_narrower_one(finished):
    kept = load_file(finished / "single" / "predictions.safetensors")
    metrics = json.loads((finished / "single" / "metrics.json").read_text())
    assert kept["dev.logits"].shape == (24, 1)
    assert torch.equal(kept["dev.labels"], torch.tensor([1, 0.8, 0.6, 0.4] * 6))
    assert spearman_corrcoef(kept["dev.logits"][:, 0], kept["dev.labels"]) == pytest.approx(metrics["score"])
    stage = json.loads((finished / "single" / "stage.json").read_text())
    assert stage["examples"] == 2 * 2 * 8  # two texts of 8 pairs in 2 steps
    assert not any(name.startswith("pooler") for name in load_file(finished / "single" / "model.safetensors"))


def test_a_teacher_that_pools_in_another_way_is_refused(finished, tiny_bert, tiny_task, tmp_path, capsys):
    teacher = shutil.copytree(tiny_bert, tmp_path / "teacher")
    (teacher / "1_Pooling").mkdir()
    (teacher / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    folder = finished.parents[2]
    more = [f"task={folder / 'pairs.yaml'}", f"data.dir={folder}", f"stages.teacher.checkpoint={teacher}"]
    assert main(["plan", *make_settings(tiny_bert, tiny_task, tmp_path / "runs", folder / "short.yaml", *more)]) == 2
    assert "does not take the mean over tokens as its embedding (1_Pooling/config.json)" in capsys.readouterr().err


def test_an_exported_encoder_shows_how_its_embeddings_are_made(finished, tmp_path, capsys):
    packed = tmp_path / "packed"
    assert main(["export", str(finished / "single"), str(packed)]) == 0
    assert "(hidden * mask).sum(dim=1) / mask.sum(dim=1)" in (packed / "README.md").read_text()
    scores = []
    for folder in (finished / "single", packed):
        capsys.readouterr()
        assert main(["predict", str(folder), "--text", "a dog", "--text-pair", "the dog", "--json", CPU]) == 0
        [found] = json.loads(capsys.readouterr().out)["predictions"]
        scores.append(found["score"])
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)
