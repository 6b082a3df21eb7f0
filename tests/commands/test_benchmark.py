"""`bitkd benchmark`: models of every kind beside stock ones of the same shape."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import bitkd
from bitkd.cli import main
from bitkd.commands import footprint
from bitkd.commands.contenders import STOCK, AbsentError, Contender, batch_for, open_stock, stock_config
from bitkd.commands.footprint import Footprint
from bitkd.models.packed import save_packed
from bitkd.processes import machine
from tests.models.test_families import WORKING, config_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
QUICK = ("--shapes", "1x8,2x16", "--seconds", "0.01")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_bert):
    """A plain checkpoint, an artifact, and the artifact packed."""
    root = tmp_path_factory.mktemp("models")
    model = BertForSequenceClassification.from_pretrained(tiny_bert)
    model.save_pretrained(root / "plain")
    bitkd.prepare(model.eval(), bitkd.QuantSpec(weight_bits=1, activation_bits=8))
    bitkd.save_student(model, root / "artifact")
    save_packed(model, root / "packed")
    return root


@pytest.fixture
def refusal(capsys):
    def benchmark(*arguments):
        assert main(["benchmark", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    return benchmark


def test_models_of_every_kind_are_measured_beside_stock_ones(folders, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: False)
    threads = torch.get_num_threads()
    names = [str(folders / name) for name in ("plain", "artifact", "packed")]
    assert main(["benchmark", *names, *QUICK, "--no-memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert torch.get_num_threads() == threads
    assert [(part["rows"], part["length"]) for part in found["shapes"]] == [(1, 8), (2, 16)]
    assert list(found["models"].values()) == ["plain", "artifact, simulated", "packed"]
    assert STOCK["bf16"] in found["absent"]
    assert names[0] in found["measured"]
    for part in found["shapes"]:
        results = {each["name"]: each for each in part["results"]}
        assert {STOCK["eager"], STOCK["sdpa"], *names} <= results.keys()
        assert results[STOCK["eager"]]["times_fp32"] == 1
        assert results.keys().isdisjoint(found["absent"])
        for each in results.values():
            assert each["rows_per_second"] == pytest.approx(part["rows"] / each["milliseconds"] * 1e3)


def test_default_shapes_are_shortened_to_what_a_model_reads(folders, capsys):
    assert main(["benchmark", str(folders / "packed"), "--seconds", "0.01", "--no-memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(part["rows"], part["length"]) for part in found["shapes"]] == [(1, 32), (8, 64), (32, 64)]


def test_the_table_names_machine_models_and_what_was_left_out(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: False)
    taken = []
    monkeypatch.setattr(footprint, "measure_footprint", lambda *request: taken.append(request) or Footprint(0.25, 12.3))
    assert main(["benchmark", str(folders / "packed"), "--shapes", "1x8", "--seconds", "0.01"]) == 0
    text = capsys.readouterr().out
    for part in (
        f"1 thread, torch {torch.__version__}",
        "1 row of 8 tokens",
        "packed (packed)",
        "not measured: bf16 SDPA: this processor has no bf16 instructions",
        "file MiB  load s  memory MiB",
        "0.25",
        "processor time of one thread",
    ):
        assert part in text
    assert [(contender.kind, *rest) for contender, *rest in taken] == [
        ("eager", "cpu", 1, 1, 8),
        ("given", "cpu", 1, 1, 8),
    ]


@pytest.mark.parametrize(
    ("code", "errors", "reason"),
    [
        (1, "Traceback …\nInputError: it is damaged\n", "InputError: it is damaged"),
        (-9, "", "its process ended with code -9"),
    ],
)
def test_a_failed_process_leaves_its_reason(monkeypatch, code, errors, reason):
    done = subprocess.CompletedProcess([], code, "", errors)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(AbsentError, match=f"^{reason}$"):
        footprint.measure_footprint(Contender("it", "given", ""), "cpu", 1, 1, 8)


def test_models_of_unlike_vocabularies_and_families_are_measured_together(folders, tmp_path, capsys, monkeypatch):
    mpnet = MPNetConfig(**SMALL, vocab_size=12, max_position_embeddings=40)
    MPNetForSequenceClassification(mpnet).save_pretrained(tmp_path / "mpnet")
    (tmp_path / "mpnet" / "pytorch_model.bin").write_bytes(b"not loaded")

    def measure_footprint(contender, *_):
        raise AbsentError("no memory")

    monkeypatch.setattr(footprint, "measure_footprint", measure_footprint)
    names = [str(tmp_path / "mpnet"), str(folders / "plain")]
    assert main(["benchmark", *names, "--shapes", "1x8", "--seconds", "0.01", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["absent"][STOCK["sdpa"]] == "transformers has no SDPA for mpnet models"
    assert found["absent"][f"load time and memory of {names[0]}"] == "no memory"
    weights = tmp_path / "mpnet" / "model.safetensors"
    assert {each["name"]: each["file_mib"] for each in found["footprints"]}[names[0]] == weights.stat().st_size / 2**20


def test_a_model_is_given_no_more_tokens_than_its_family_reads(tmp_path, refusal):
    config = RobertaConfig(**SMALL, vocab_size=20, max_position_embeddings=42)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    assert "reads 40 tokens, not 41" in refusal(tmp_path, "--shapes", "1x41")


def test_an_onnx_folder_is_checked_and_measured(folders, tmp_path, capsys, refusal):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from bitkd.export.onnx import export_onnx

    export_onnx(bitkd.load_student(folders / "artifact"), None, tmp_path)
    assert main(["benchmark", str(tmp_path), *QUICK, "--no-memory", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["models"].values()) == ["ONNX"]
    (tmp_path / "model.onnx").write_bytes(b"something else")
    assert "model.onnx is damaged" in refusal(tmp_path, *QUICK)


@pytest.mark.parametrize("name", WORKING)
def test_a_tiny_model_of_every_family_can_be_made(name):
    footprint._use_tiny_model(config_of(name, WORKING[name]), "cpu")


def test_a_footprint_is_printed_as_json(folders, capsys):
    request = {"contender": asdict(Contender("it", "given", str(folders / "packed"))), "device": "cpu", "threads": 1}
    assert footprint.main(json.dumps(request | {"rows": 2, "length": 8})) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["load_seconds"] > 0
    assert found["peak_mib"] is None or found["peak_mib"] >= 0


def test_wrong_input_is_refused_before_any_work(folders, tmp_path, refusal):
    packed = folders / "packed"
    assert "'8' is no shape; give rows x tokens" in refusal(packed, "--shapes", "8")
    assert "--threads=0 is not at least 1" in refusal(packed, "--threads", 0)
    assert "--seconds=0 is not above 0" in refusal(packed, "--seconds", 0)
    assert "reads 64 tokens, not 65" in refusal(packed, "--shapes", "1x8,1x65")
    assert "there is no such folder" in refusal(tmp_path / "absent")
    assert "has no config.json" in refusal(tmp_path)


def test_a_gpu_that_is_not_there_is_told(folders, refusal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device=cpu" in refusal(folders / "packed", "--device", "cuda", "--shapes", "1x8")


def test_wrong_input_is_answered_without_torch(folders):
    script = "import sys\nfrom bitkd.cli import main\ncode = main(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"
    arguments = ["benchmark", str(folders / "packed"), "--shapes", "8"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.split() == ["2", "False"]


def test_a_stock_model_has_the_configuration_and_nothing_of_the_student(folders):
    config = stock_config(folders / "packed")
    plain = stock_config(folders / "plain")
    assert not hasattr(config, "bitkd")
    assert (config.hidden_size, config.num_hidden_layers, config.model_type) == (32, 4, "bert")
    batch = batch_for(2, 8, plain.vocab_size)
    assert shapes_of(batch) == {"input_ids": (2, 8), "attention_mask": (2, 8)}
    assert open_stock("sdpa", config, "cpu")(batch).logits.shape == (2, 2)


def shapes_of(batch):
    return {name: tuple(tensor.shape) for name, tensor in batch.items()}


def test_what_needs_a_gpu_says_so(folders):
    with pytest.raises(AbsentError, match=r"CUDA graphs need a GPU|no bf16"):
        open_stock("bf16_compiled", stock_config(folders / "plain"), "cpu")


def test_int8_of_onnxruntime_runs_where_it_is_installed(folders):
    pytest.importorskip("onnxruntime")
    config = stock_config(folders / "plain")
    for kind in ("onnx_int8", "onnx_int8_fused"):
        for rows, length in ((1, 8), (3, 16)):
            logits = open_stock(kind, config, "cpu")(batch_for(rows, length, config.vocab_size))
            assert logits.shape == (rows, 2)
