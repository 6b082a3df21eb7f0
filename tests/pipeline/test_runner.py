import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from bitkd.config.comparable import result_settings
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, load_student, save_student
from bitkd.models.encoder import read_spec
from bitkd.pipeline.identity import FORMAT
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.stages.base import StudentModule
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import read_record, read_weights


def states(overrides):
    plan = make_plan(load_config(overrides))
    return {stage.name: plan.state(stage) for stage in plan.stages}


@pytest.mark.parametrize("pipeline", ["multistage", "singlestage"])
def test_a_second_run_skips_every_stage(runs, settings, console, pipeline):
    overrides = settings(runs, pipeline)
    assert set(states(overrides).values()) == {"done"}
    before = read_weights(runs, pipeline)
    run(load_config(overrides), console)
    assert all("is done already" in line for line in console.lines if line.startswith("stage"))
    assert read_weights(runs, pipeline) == before


def test_the_same_seed_gives_the_same_bytes_and_skipping_changes_nothing(finished, settings, console, tmp_path):
    # Here the teacher is trained; in `finished` singlestage found it done.
    run(load_config(settings(tmp_path)), console)
    assert read_weights(tmp_path) == read_weights(finished)
    assert sum("finished:" in line for line in console.lines) == 4


def test_another_seed_gives_other_weights_and_keeps_general_kd(finished, settings):
    plan = make_plan(load_config(settings(finished, "multistage", "seed=7")))
    assert {stage.name for stage in plan.stages if plan.state(stage) == "done"} == {"general"}


def test_runs_of_different_seeds_share_no_trained_stage_if_they_are_to_share_none(settings, tmp_path):
    def config(seed, *more):
        return load_config(settings(tmp_path, "multistage", f"seed={seed}", "stages.teacher.seed=0", *more))

    one, two = (make_plan(config(seed, "share_across_seeds=false")).stages for seed in (1, 2))
    assert not {stage.key for stage in one if stage.trains} & {stage.key for stage in two if stage.trains}
    shared = {name: stage.seed for name, stage in config(1).stages.items() if stage.seed is not None}
    assert shared == {"teacher": 0, "general": 0}


def test_only_what_has_changed_is_recomputed(runs, settings, console):
    overrides = settings(runs, "multistage", "stages.ternary.lr=0.02")
    changed = ["ternary", "split", "stage1_binary", "stage2_binary"]
    assert states(overrides) == {
        name: "stale" if name in changed else "done" for name in states(settings(runs, "multistage"))
    }
    run(load_config(overrides), console)
    assert [line.split()[4] for line in console.lines if "finished:" in line] == changed
    assert set(states(settings(runs, "multistage")).values()) == {"done"}


@pytest.mark.parametrize("change", ["run.name=other", "data.num_workers=0", "checkpoint.every_minutes=1", "logger=csv"])
def test_what_changes_no_number_changes_no_fingerprint(finished, settings, change):
    assert set(states(settings(finished, "singlestage", change)).values()) == {"done"}


def test_a_dev_set_that_is_too_small_for_all_processes_is_refused(settings, tmp_path):
    corpus = tmp_path / "small.txt"
    corpus.write_text("\n\n".join(["the dog sees a cat", "a bird sleeps"] * 20))
    with pytest.raises(InputError, match=r"stages\.general: 1 rows of dev cannot be shared by 2 processes"):
        make_plan(load_config(settings(tmp_path, "multistage", "trainer.devices=2", f"data.corpus=[{corpus}]")))


def test_other_files_in_the_models_folder_change_no_fingerprint(finished, settings, tiny_bert, tmp_path):
    copied = shutil.copytree(tiny_bert, tmp_path / "bert")
    (copied / "generation_config.json").write_text("{}")
    (copied / "training_args.bin").write_bytes(b"x")
    assert set(states([*settings(finished), f"model.pretrained={copied}"]).values()) == {"done"}


def test_an_artifact_that_was_copied_in_part_is_made_again(runs, settings, console):
    path = (runs / "rte" / "singlestage" / "single").resolve()
    (path / "stage.json").unlink()
    before = read_weights(runs)
    run(load_config(settings(runs)), console)
    assert sum("finished:" in line for line in console.lines) == 1
    assert read_weights(runs) == before


def test_a_cut_stage_resumes_to_the_same_bytes(finished, settings, console, tmp_path, monkeypatch):
    overrides = settings(tmp_path, "multistage", "checkpoint.every_steps=1")
    original = StudentModule.training_step

    def cut(self, batch, batch_idx):
        if isinstance(self, IntermediateDistillation) and batch_idx == 3:
            raise RuntimeError("cut")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", cut)
    with pytest.raises(
        StageFailedError, match=r"stage stage1 failed: RuntimeError: cut\nnot run: stage2, ternary, split"
    ):
        run(load_config(overrides), console)
    assert states(overrides)["stage1"] == "partial"
    assert states(overrides)["general"] == "done"
    assert "cut" in (tmp_path / "rte" / "multistage" / "stage1.error.txt").read_text()
    monkeypatch.undo()
    run(load_config(overrides), console)
    assert "stage 3 of 8: stage1 goes on at step 3 of 4" in console.lines
    assert any(
        re.match(r"stage 2 of 8: general finished: dev loss \d+\.\d{4}, 4 steps, ", line) for line in console.lines
    )
    assert read_weights(tmp_path, "multistage") == read_weights(finished, "multistage")
    assert read_record(tmp_path, "multistage", "stage1") == read_record(finished, "multistage", "stage1")
    assert not any((tmp_path / "store" / ".work").iterdir())


def test_a_stage_that_is_stopped_behind_its_last_step_keeps_its_record(
    settings, finished, console, tmp_path, monkeypatch
):
    overrides = settings(tmp_path, "singlestage", "checkpoint.every_steps=1")
    original = StudentModule.on_validation_epoch_end

    def cut(self):
        if self.trainer.state.fn == "validate" and isinstance(self, SingleStageDistillation):
            raise RuntimeError("cut")
        original(self)

    monkeypatch.setattr(StudentModule, "on_validation_epoch_end", cut)
    with pytest.raises(StageFailedError, match="stage single failed: RuntimeError: cut"):
        run(load_config(overrides), console)
    monkeypatch.undo()
    run(load_config(overrides), console)
    assert read_record(tmp_path, "singlestage", "single") == read_record(finished, "singlestage", "single")


def test_a_damaged_artifact_is_reported_and_recomputed(runs, settings, console):
    before = read_weights(runs)
    file = (runs / "rte" / "singlestage" / "single" / "model.safetensors").resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    run(load_config(settings(runs)), console)
    assert sum("has checksum" in line and "recomputed" in line for line in console.lines) == 1
    assert read_weights(runs) == before


def test_a_loss_that_is_not_finite_stops_the_stage_and_keeps_the_rest(settings, console, tmp_path):
    overrides = settings(tmp_path, "singlestage", "stages.single.loss.logits=1e39")
    with pytest.raises(
        StageFailedError, match=r"stage single failed: NonFiniteLossError: loss term logits.*\nnot run: single_binary"
    ):
        run(load_config(overrides), console)
    assert states(overrides)["init"] == "done"


def test_the_split_student_is_the_ternary_one(finished):
    metrics = [
        json.loads((finished / "rte" / "multistage" / name / "metrics.json").read_text())
        for name in ("ternary", "split")
    ]
    assert metrics[0]["dev"]["loss"] == pytest.approx(metrics[1]["dev"]["loss"], abs=1e-6)
    assert metrics[0]["score"] == metrics[1]["score"]


def test_every_artifact_says_what_it_is(finished):
    folder = finished / "rte" / "multistage"
    precision = {"teacher": (32, False), "ternary": (2, False), "split": (1, True), "stage2_binary": (1, True)}
    for name, (bits, split) in precision.items():
        spec = read_spec(load_student(folder / name))
        assert (spec.quant.weight_bits, spec.split) == (bits, split)
        record = json.loads((folder / name / "stage.json").read_text())
        assert record["name"] == name
        assert {"fingerprint", "inputs", "seed", "seconds", "steps", "versions", "checksums", "size"} <= set(record)
    assert (
        read_spec(load_student(folder / "general")).kept_heads == read_spec(load_student(folder / "split")).kept_heads
    )
    single = [read_spec(load_student(finished / "rte" / "singlestage" / name)) for name in ("single", "single_binary")]
    assert [spec.quant.weight_bits for spec in single] == [32, 1]
    assert (folder / "logs" / "stage1" / "version_0" / "metrics.csv").read_text().count("train/attention") == 1


def test_a_run_records_the_settings_that_decide_its_numbers_and_what_it_read(finished, settings):
    def settings_of(name):
        return json.loads((finished / "rte" / name / "manifest.json").read_text())["settings"]

    found = settings_of("singlestage")
    read = {name: value for name, value in found.items() if name.startswith("content of ")}
    assert found == result_settings(load_config(settings(finished))) | read
    assert found["train.lr"] == 1e-2
    assert set(read) == {"content of model", "content of rows"}
    assert read.items() < settings_of("multistage").items()
    assert "content of corpus" in settings_of("multistage")


@pytest.mark.parametrize("stage", ["teacher", "init", "single_binary"])
def test_metrics_are_those_of_the_predictions_that_are_kept(finished, tiny_task, stage):
    folder = finished / "rte" / "singlestage" / stage
    kept = load_file(folder / "predictions.safetensors")
    assert kept["dev.logits"].shape == (33, 2)
    rows = (tiny_task / "RTE" / "dev.tsv").read_text().splitlines()[1:]
    assert kept["dev.labels"].tolist() == [int(row.endswith("not_entailment")) for row in rows]  # in the file's order
    right = (kept["dev.logits"].argmax(1) == kept["dev.labels"]).float().mean()
    assert right == pytest.approx(json.loads((folder / "metrics.json").read_text())["dev"]["accuracy"])


def test_a_task_agnostic_student_predicts_nothing(finished):
    assert not (finished / "rte" / "multistage" / "general" / "predictions.safetensors").exists()


def test_a_stages_record_holds_cost_and_scores_on_the_way(finished):
    flops, curve, _ = read_record(finished, "singlestage", "single")
    assert flops["student"] > 2.9 * flops["teacher"] > 0  # forward and backward of all layers, against a forward
    assert [step for step, _ in curve] == [0, 2, 4]
    assert read_record(finished, "singlestage", "init")[:2] == [{"student": 0, "teacher": 0, "importance": 0}, []]
    assert read_record(finished, "multistage", "teacher")[0]["teacher"] == 0


def test_a_student_counts_before_its_first_step_where_its_head_is_trained(finished):
    def seen(pipeline, stage):
        record = json.loads((finished / "rte" / pipeline / stage / "stage.json").read_text())
        return record["selected"], [step for step, _ in record["curve"]]

    assert seen("multistage", "teacher") == ("best", [2, 4])
    assert seen("multistage", "general") == ("last", [2, 4])
    with_teachers_head = ("stage1", "stage2", "ternary", "stage1_binary", "stage2_binary")
    for stage in with_teachers_head:
        assert seen("multistage", stage) == ("best", [0, 2, 4])


def test_a_stage_that_only_harms_hands_on_what_it_got(settings, console, tmp_path):
    harm = [f"stages.single.{setting}" for setting in ("lr=1", "schedule=constant", "warmup_ratio=0")]
    run(load_config(settings(tmp_path, "singlestage", "stages.teacher.max_steps=40", *harm)), console)
    folder = tmp_path / "rte" / "singlestage"
    given, made = (load_student(folder / name).state_dict() for name in ("init", "single"))
    assert all(torch.equal(weight, made[name]) for name, weight in given.items())
    record = json.loads((folder / "single" / "stage.json").read_text())
    score = json.loads((folder / "init" / "metrics.json").read_text())["score"]
    assert (record["selected"], record["selected_step"], len(record["curve"])) == ("best", 0, 3)
    assert record["curve"][0][1] == pytest.approx(score)
    assert ["better than the student that it got" in line for line in console.lines if "finished:" in line].count(
        True
    ) >= 1


def test_a_stages_record_says_what_was_seen_and_what_was_not_training(finished):
    single, general, init = (
        json.loads((finished / "rte" / place / "stage.json").read_text())
        for place in ("singlestage/single", "multistage/general", "singlestage/init")
    )
    assert single["examples"] < single["tokens"] < single["padded_tokens"] <= single["examples"] * 32
    assert general["tokens"] <= general["padded_tokens"] <= general["examples"] * 32
    assert init["tokens"] == init["validation_seconds"] == 0
    for record in (single, general):
        assert 0 < record["validation_seconds"] + record["saving_seconds"] < record["seconds"]
    assert general["flops"]["importance"] > 0
    assert general["seconds_before"] > 0
    assert (single["selection_rows"], general.get("selection_rows")) == (33, None)


def test_a_given_teacher_is_used_instead_of_training_one(finished, settings, console, tmp_path):
    given = finished / "rte" / "singlestage" / "teacher"
    overrides = settings(tmp_path, "singlestage", f"stages.teacher.checkpoint={given}")
    run(load_config(overrides), console)
    copied = load_student(tmp_path / "rte" / "singlestage" / "teacher")
    torch.testing.assert_close(copied.state_dict(), load_student(given).state_dict())
    # A plain checkpoint whose labels stand in another order is mapped by name.
    model = load_classifier(given)
    del model.config.bitkd
    model.config.id2label = {0: "Not-Entailment", 1: "entailment"}
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.save_pretrained(tmp_path / "plain")
    run(load_config(settings(tmp_path, "singlestage", f"stages.teacher.checkpoint={tmp_path / 'plain'}")), console)
    mapped = load_student(tmp_path / "rte" / "singlestage" / "teacher")
    torch.testing.assert_close(mapped.classifier.weight, copied.classifier.weight)


def test_a_teacher_without_a_tokenizer_is_taken(finished, settings, tmp_path):
    save_student(load_classifier(finished / "rte" / "singlestage" / "teacher"), tmp_path / "bare")
    make_plan(load_config(settings(tmp_path, "singlestage", f"stages.teacher.checkpoint={tmp_path / 'bare'}")))


def test_an_artifact_is_no_pretrained_model(finished, settings, tmp_path):
    artifact = finished / "rte" / "singlestage" / "teacher"
    with pytest.raises(InputError, match="is a bitkd artifact; name a plain pre-trained encoder"):
        make_plan(load_config([*settings(tmp_path, "singlestage"), f"model.pretrained={artifact}"]))


def test_a_teacher_that_does_not_fit_is_refused(finished, settings, tiny_bert, tmp_path):
    def plan_with(folder, *more):
        make_plan(load_config(settings(tmp_path, "singlestage", f"stages.teacher.checkpoint={folder}", *more)))

    with pytest.raises(InputError, match=r"has no trained head: classifier\.bias is missing"):
        plan_with(tiny_bert)
    with pytest.raises(InputError, match="has no trained head"):
        plan_with(finished / "rte" / "multistage" / "general")
    model = load_classifier(finished / "rte" / "singlestage" / "teacher")
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    save_student(model, tmp_path / "nameless")
    with pytest.raises(InputError, match=r"\['LABEL_0', 'LABEL_1'\] cannot be mapped .*stages\.teacher\.labels="):
        plan_with(tmp_path / "nameless")
    plan_with(tmp_path / "nameless", "stages.teacher.labels=[not_entailment,entailment]")
    with pytest.raises(InputError, match="layer 9; the source has 4 layers"):
        plan_with(finished / "rte" / "singlestage" / "teacher", "student.layers=[9]")
    with pytest.raises(InputError, match=r"has 2 labels .*the task has 3"):
        plan_with(finished / "rte" / "singlestage" / "teacher", "task.labels=[entailment,not_entailment,other]")
    with pytest.raises(InputError, match="there is no such folder"):
        plan_with("/nowhere/teacher")


def test_a_pipeline_of_ones_own_is_one_yaml_file(settings, console, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("""
pipeline: {name: mine}
student: {layers: [1, 3], init: random, width: 0.5}
stages:
  binary: {kind: single_stage, student: small, teacher: helper, quant: {weight_bits: 1, activation_bits: 8, per_row: true}}
  helper: {kind: prediction, student: teacher, teacher: teacher, quant: {weight_bits: 2, per_row: true}}
  small: {kind: general, student: pretrained, teacher: pretrained, loss: {unmatched_heads: group_mean}}
  direct: {kind: split, student: teacher, quant: {weight_bits: 1, activation_bits: 8, pooler: true}}
  teacher: {kind: finetune}
""")
    run(load_config(settings(tmp_path, str(file))), console)
    order = [line.split()[4] for line in console.lines if "finished:" in line]
    assert order == ["small", "teacher", "helper", "binary", "direct"]


def test_a_published_general_tinybert_learns_from_a_wider_teacher(
    finished, settings, tiny_tokenizer, console, tmp_path
):
    """Files as TinyBERT's authors publish them: settings that BERT lacks, no family, the projections of General KD."""
    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 50}
    general = BertModel(BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **shape))
    weights = {f"bert.{name}": tensor for name, tensor in general.state_dict().items()}
    folder = tmp_path / "general"
    tiny_tokenizer.save_pretrained(folder)
    torch.save(weights | {f"fit_denses.{i}.weight": torch.ones(32, 12) for i in range(3)}, folder / "pytorch_model.bin")
    file = tmp_path / "tinybert.yaml"
    file.write_text("""
pipeline: {name: tinybert}
stages:
  teacher: {kind: finetune}
  stage1: {kind: intermediate, student: pretrained, teacher: teacher}
  stage2: {kind: prediction, student: stage1, teacher: teacher, quant: {weight_bits: 1, activation_bits: 8}}
""")
    teacher = f"stages.teacher.checkpoint={finished / 'rte' / 'singlestage' / 'teacher'}"
    overrides = settings(tmp_path / "runs", str(file), f"model.pretrained={folder}", teacher, "train.max_steps=2")
    config = general.config.to_dict() | {"cell": {}, "emb_size": 12, "pre_trained": "", "structure": [], "training": ""}
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match='"model_type": "bert" for a BERT or a TinyBERT'):
        make_plan(load_config(overrides))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    plan = run(load_config(overrides), console)
    first = plan.folder.artifacts()["stage1"].stage
    assert (first.selected, first.selected_step) == ("last", 2)
    spec = read_spec(load_classifier(plan.folder.folder / "stage2"))
    assert (spec.heads, spec.head_size, spec.neurons, spec.root_layers) == (4, 3, 50, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stages.single.kind=singel"], r"stages\.single\.kind=singel is unknown; did you mean single_stage\?"),
        (["stages.single.teacher=techer"], r"stages\.single\.teacher=techer is no stage .*did you mean teacher\?"),
        (["stages.single.teacher=null"], r"stages\.single\.teacher is missing"),
        (["stages.init.teacher=teacher"], "a init stage has no teacher"),
        (["stages.init.student=single"], "the graph has a cycle"),
        (["stages.single.teacher=pretrained"], "has no trained head to learn logits from"),
        (["stages.single.select=newest"], "select=newest is unknown; did you mean best"),
        (["stages.single.quant.weight_bits=3"], r"stages\.single: weight_bits=3 is unsupported; use 1 \(binary\)"),
        (["stages.single.quant.activation_bits=3"], "activation_bits=3 is unsupported"),
        (
            ["stages.single.quant.per_row=true"],
            "per_row=true with weight_bits=32 changes nothing; set stages.single.quant.weight_bits",
        ),
        (["stages.single.quant.attention_activations=true"], "with activation_bits=32 changes nothing"),
        (
            ["stages.init.loss.extra.attention_map=1"],
            r"loss\.extra\.attention_map: a init stage has no teacher to learn it from",
        ),
        (
            [f"stages.single.loss.{term}=0" for term in ("logits", "hidden", "attention")],
            "give one of .* a positive weight, or one of extra.attention_map, extra.attention_output",
        ),
        (["stages.init.checkpoint=x"], "is only for a finetune stage"),
        (["student.layers=[1,9]"], "layer 9; the source has 4 layers"),
        (["student.width=0.3"], "must leave a whole number of heads"),
        (["student.heads=5"], r"stages\.init: student\.heads=5 cannot be copied"),
        (["train.batch_size=7", "trainer.devices=2"], "train.batch_size=7 does not divide into 2 equal parts"),
        (["train.schedule=cosine"], "schedule=cosine is unknown"),
        (["train.lr=-1"], "train.lr=-1.0 is outside 0 to 1"),
        (["stages.single.max_steps=0"], "stages.single.max_steps=0 is too small; use at least 1"),
        (["train.max_steps=null", "train.epochs=0"], "train.epochs=0.0 is no training"),
        (["train.batch_size=0"], "train.batch_size=0 is too small; use at least 1"),
        (["data.max_length=400"], r"data\.max_length=400 is outside .*use 8 to 64"),
        (["data.max_length=4"], "use 8 to 64"),
        (["logger=tensorboard"], "use one of csv, wandb"),
        (
            ["stages.single.loss.unmatched_heads=relatoin"],
            "loss.unmatched_heads=relatoin is unknown; did you mean relation",
        ),
        (["stages.single.loss.regression_target=lable"], "regression_target=lable is unknown; did you mean label"),
        (["stages.single.loss.hidden=-1"], r"loss.hidden=-1.0 is no weight"),
        (["stages.single.loss.temperature=0"], r"loss.temperature=0.0 is unsupported"),
        ([f"stages.single.loss.{term}=0" for term in ("logits", "hidden", "attention")], "has no term left"),
        (
            ["stages.single.loss.padding=zero"],
            r"stages\.single\.loss\.padding=zero takes means over padding.*set data\.pad_to_max_length=true",
        ),
        (["train.warmup_epochs=-1"], r"train\.warmup_epochs=-1\.0 is no length; use 0 or a positive number"),
        (
            ["stages.single.warmup_epochs=1", "stages.single.warmup_ratio=0.1"],
            r"stages\.single\.warmup_epochs=1\.0 and \.warmup_ratio=0\.1 both say how long",
        ),
        (["stages.single.seed=-1"], "seed=-1 is out of range"),
        (["data.eval_batch_size=0"], "data.eval_batch_size=0 is too small"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0 is too small"),
        (["data.num_workers=-1"], "is negative; use 0 or more"),
        (["trainer.precision=bf16-true"], "did you mean bf16-mixed"),
        (["data.dir=/nowhere"], r"data\.dir=/nowhere: there is no such folder"),
        (["model.pretrained=/nowhere/bert"], r"model\.pretrained=/nowhere/bert: there is no such folder"),
    ],
)
def test_bad_input_is_found_before_any_work(settings, console, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        run(load_config(settings(tmp_path / "runs", "singlestage", *more)), console)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.corpus=[]"], "General KD needs a text corpus"),
        (["data.corpus=[/nowhere.txt]"], "there is no such file"),
        (
            ["data.streaming=true", "train.warmup_epochs=1"],
            r"stages\.general reads a stream, which has no epochs to warm up for.*give stages\.general\.warmup_ratio=",
        ),
        (["stages.stage1_binary.quant.weight_bits=2"], "is split into binary halves; use 1"),
        (["stages.split.quant.weight_bits=2"], "a split student is binary; use 1"),
        (["stages.split.quant.embedding_bits=2"], "use 1, or 32"),
        (
            ["stages.stage1_binary.kind=init", "stages.stage1_binary.teacher=null"],
            "is split and cannot be reshaped again",
        ),
        (["stages.split.student=general"], "has no head; put a KD stage on the task between them"),
        (["stages.teacher.student=general"], "has no head to fine-tune; use pretrained"),
        (["stages.stage1.teacher=general", "stages.stage2.teacher=general"], "no trained head to learn logits from"),
    ],
)
def test_bad_graphs_are_refused(settings, console, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        run(load_config(settings(tmp_path / "runs", "multistage", *more)), console)


def test_a_run_folder_that_cannot_be_written_is_bad_input(settings, console, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is not writable .*run\.dir="):
        run(load_config(settings(tmp_path / "file" / "runs")), console)


def test_general_kd_on_a_stream_resumes_at_the_same_document(settings, tiny_task, console, tmp_path, monkeypatch):
    monkeypatch.setattr("bitkd.data.corpus_rows.HELD_OUT", 10)
    monkeypatch.setattr("bitkd.data.stream.STREAM_BLOCK", 8)
    stream = ["data.streaming=true", f"stages.general.max_tokens={12 * 8 * 32}", "checkpoint.every_steps=1"]
    original = StudentModule.training_step

    def cut(self, batch, batch_idx):
        if "position" in batch and batch_idx == 7:
            raise RuntimeError("cut")
        return original(self, batch, batch_idx)

    pipeline = tmp_path / "only_general.yaml"
    pipeline.write_text(
        "pipeline: {name: only_general}\n"
        "student: {width: 0.5}\n"
        "stages: {general: {kind: general, student: pretrained, teacher: pretrained}}\n"
    )
    whole, cut_short = (settings(tmp_path / name, str(pipeline), *stream) for name in ("whole", "cut"))
    run(load_config(whole), console)
    assert make_plan(load_config(whole))["general"].total_steps == 12
    monkeypatch.setattr(StudentModule, "training_step", cut)
    with pytest.raises(StageFailedError, match="stage general failed: RuntimeError: cut"):
        run(load_config(cut_short), console)
    monkeypatch.setattr(StudentModule, "training_step", original)
    run(load_config(cut_short), console)
    assert read_weights(tmp_path / "cut", "only_general") == read_weights(tmp_path / "whole", "only_general")


def test_a_stream_has_no_epochs(settings, tmp_path):
    with pytest.raises(InputError, match=r"give stages\.general\.max_steps= or \.max_tokens="):
        make_plan(load_config(settings(tmp_path, "multistage", "data.streaming=true", "train.max_steps=null")))


def test_a_head_that_no_term_reads_is_not_a_trained_one(settings, console, tmp_path):
    """A student from scratch, distilled without the logits term: its head is as random as before."""
    random = ["student.init=random", "student.hidden_size=16", "student.layers=[0,1]"]
    overrides = settings(tmp_path, "singlestage", *random, "stages.single.loss.logits=0")
    plan = run(load_config(overrides), console)
    stage = plan.folder.artifacts()["single"].stage
    assert stage.selected == "last"  # scores of a random head choose nothing
    assert stage.selected_step == 4
    with pytest.raises(InputError, match="has no trained head"):
        load_classifier(plan.folder.folder / "single")
    binary = plan.folder.artifacts()["single_binary"].stage
    assert binary.selected == "best"
    load_classifier(plan.folder.folder / "single_binary")


def test_artifacts_of_an_earlier_format_are_computed_anew(finished, settings, monkeypatch):
    plan = make_plan(load_config(settings(finished)))
    monkeypatch.setattr("bitkd.pipeline.identity.FORMAT", FORMAT - 1)
    earlier = make_plan(load_config(settings(finished)))
    assert not {stage.key for stage in plan.stages} & {stage.key for stage in earlier.stages}
    assert {plan.state(stage) for stage in plan.stages} == {"done"}
    assert {earlier.state(stage) for stage in earlier.stages} == {"stale"}
