"""The recipes of conf/recipe, and what a recipe's file may hold."""

import pytest
import torch
from transformers import BertConfig, BertModel

from bitkd.config.load import choices, load_config
from bitkd.config.schema import settings_of
from bitkd.errors import InputError
from bitkd.pipeline.plan import check_settings
from bitkd.pipeline.runner import run
from bitkd.store.artifacts import read_artifact

RECIPE = """\
pipeline: {name: own, title: Own}
train: {epochs: 3}
stages:
  teacher: {kind: finetune}
tasks:
  rte: {train: {epochs: 7}, stages: {teacher: {lr: 1e-3}}}
"""


@pytest.fixture(scope="module")
def twelve_layers(tmp_path_factory, tiny_tokenizer):
    """The folder of a random BERT with 12 layers of 12 heads, hidden size 24."""
    folder = tmp_path_factory.mktemp("twelve")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """One folder of runs, so that recipes share their teachers."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("recipe", choices("recipe"))
@pytest.mark.parametrize("task", ["mnli", "stsb", "cola", "squad_v2", "demo"])
def test_every_recipe_goes_with_tasks_of_every_form(recipe, task):
    config = load_config([f"recipe={recipe}", f"task={task}"])
    assert (config.pipeline.name, config.task.name) == (recipe, task)
    check_settings(config)


ALIKE = {
    "binarybert-w1a4": "binarybert-w1a8",
    "bit-w1a4": "bit-w1a1",
    "bit-w1a2": "bit-w1a1",
    "xtc-12l-w2a8": "xtc-12l-w1a8",
    "xtc-6l-w2a8": "xtc-6l-w1a8",
    "xtc-5l-w2a8": "xtc-5l-w1a8",
}
"""Recipes with the stages of another one, at other bits."""


def test_recipes_that_are_alike_have_the_same_kinds_of_stages():
    for one, other in ALIKE.items():
        kinds = [{s.kind for s in load_config([f"recipe={name}", "task=rte"]).stages.values()} for name in (one, other)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("recipe", [recipe for recipe in choices("recipe") if recipe not in ALIKE])
def test_every_recipe_runs(recipe, twelve_layers, shared_runs, tiny_task, console):
    small = {
        "tinybert-6l": ["student.hidden_size=24"],
        "tinybert-4l": ["student.hidden_size=12", "student.intermediate_size=20"],
    }
    names = load_config([f"recipe={recipe}", "task=rte"]).stages
    settings = [
        *(f"recipe={recipe}", "task=rte", f"run.dir={shared_runs}", f"data.dir={tiny_task}"),
        *(f"model.pretrained={twelve_layers}", f"data.corpus=[{tiny_task / 'corpus.txt'}]", "data.max_length=16"),
        *("data.importance_rows=16", "trainer.accelerator=cpu", "task.augmentation.enabled=false"),
        *(f"stages.{name}.max_steps=2" for name in names),
        *(f"stages.{name}.batch_size=4" for name in names),
        *small.get(recipe, []),
    ]
    plan = run(load_config(settings), console)
    final = read_artifact(plan.store.path(plan.stages[-1].key)).stage
    assert final.steps == 2
    form = recipe.rpartition("-")[2]
    assert final.size.precision == (form.upper() if form.startswith("w") else "W32A32")


@pytest.mark.parametrize(("task", "epochs", "lr"), [("rte", 7.0, 1e-3), ("mrpc", 3.0, None)])
def test_a_recipe_has_values_for_tasks(tmp_path, task, epochs, lr):
    (tmp_path / "own.yaml").write_text(RECIPE)
    config = load_config([f"recipe={tmp_path / 'own.yaml'}", f"task={task}"])
    assert (config.train.epochs, config.stages["teacher"].lr) == (epochs, lr)
    assert load_config([f"recipe={tmp_path / 'own.yaml'}", f"task={task}", "train.epochs=9"]).train.epochs == 9


@pytest.mark.parametrize(
    ("recipe", "stage", "optimizer", "lr", "batch_size", "epochs", "warmup", "padding"),
    [
        ("xtc-12l-w1a8", "single_binary", "adamw", 5e-5, 32, 18, 1, "leave"),
        ("xtc-12l-w2a8", "single_ternary", "adamw", 5e-5, 32, 18, 1, "leave"),
        ("xtc-6l-w1a8", "single", "adamw", 5e-5, 32, 36, 1, "leave"),
        ("xtc-6l-w2a8", "single_ternary", "adamw", 5e-5, 32, 18, 1, "leave"),
        ("xtc-5l-w1a8", "single_binary", "adamw", 5e-5, 32, 18, 1, "leave"),
        ("xtc-5l-w2a8", "single", "adamw", 5e-5, 32, 36, 1, "leave"),
        ("ternarybert-w2a8", "ternary", "bert_adam", 2e-5, 32, 3, 0.1, "zero"),
        ("binarybert-w1a8", "stage1_ternary", "bert_adam", 2.5e-5, 16, 2, 0.1, "zero"),
        ("binarybert-w1a8", "stage2_ternary", "bert_adam", 1e-5, 16, 2, 0.1, "zero"),
        ("binarybert-w1a8", "stage1_binary", "bert_adam", 1.25e-4, 16, 2, 0.1, "zero"),
        ("binarybert-w1a8", "stage2_binary", "bert_adam", 5e-5, 16, 2, 0.1, "zero"),
        ("binarybert-w1a4", "stage2_binary", "bert_adam", 5e-5, 16, 2, 0.1, "zero"),
        ("bit-w1a4", "four_bits", "bert_adam", 2e-4, 16, 6, 0.1, "zero"),
        ("bit-w1a2", "two_bits", "bert_adam", 2e-4, 16, 6, 0.1, "zero"),
        ("bit-w1a1", "one_bit", "bert_adam", 2e-4, 16, 6, 0.1, "zero"),
        ("tinybert-6l", "general", "bert_adam", 5e-5, 256, 3, 0.1, "zero"),
        ("tinybert-6l", "stage1", "bert_adam", 5e-5, 32, 10, 0, "zero"),
        ("tinybert-4l", "stage2", "bert_adam", 3e-5, 32, 3, 0.1, "zero"),
    ],
)
def test_values_on_mnli_are_the_published_ones(recipe, stage, optimizer, lr, batch_size, epochs, warmup, padding):
    config = load_config([f"recipe={recipe}", "task=mnli"])
    found = settings_of(config.stages[stage], config.train)
    length = found["warmup_ratio"] if found["warmup_epochs"] is None else found["warmup_epochs"]
    assert (found["optimizer"], found["lr"], found["batch_size"]) == (optimizer, lr, batch_size)
    assert (found["epochs"], length, found["gradient_clip"], found["weight_decay"]) == (epochs, warmup, 1.0, 0.01)
    assert config.stages[stage].loss.padding == padding
    assert config.stages[stage].loss.mean_over_classes
    assert (config.data.max_length, config.data.pad_to_max_length) == (128, True)


def test_published_values_differ_between_tasks():
    def epochs(task):
        return load_config(["recipe=xtc-6l-w1a8", f"task={task}"]).stages["single"].epochs

    assert (epochs("mnli"), epochs("qqp"), epochs("rte")) == (36, 36, None)
    assert load_config(["recipe=binarybert-w1a8", "task=cola"]).data.max_length == 64


@pytest.mark.parametrize(
    ("task", "lr", "epochs", "batch_size", "length"),
    [
        ("mrpc", 5e-4, 20, 8, 128),
        ("cola", 5e-4, 50, 16, 64),
        ("sst2", 1e-4, 10, 8, 64),
        ("qnli", 2e-4, 10, 8, 128),
        ("qqp", 2e-4, 6, 32, 128),
    ],
)
def test_bits_precisions_teach_one_another_by_its_published_values(task, lr, epochs, batch_size, length):
    config = load_config(["recipe=bit-w1a1", f"task={task}"])
    one, two = config.stages["one_bit"], config.stages["two_bits"]
    assert (one.student, one.teacher, two.teacher) == ("two_bits", "two_bits", "teacher")
    assert (config.student.hidden_act, config.data.max_length) == ("relu", length)
    for stage in (one, two):
        found = settings_of(stage, config.train)
        assert (found["lr"], found["epochs"], found["batch_size"], found["scales_lr"]) == (lr, epochs, batch_size, 1e-4)
        assert (stage.loss.attention, stage.quant.weight_bits, stage.quant.attention_activations) == (0, 1, True)
    assert settings_of(config.stages["teacher"], config.train)["lr"] == 2e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{epochs: 7}", "{epoch: 7}"), r"unknown key tasks\.rte\.train\.epoch; did you mean epochs\?"),
        (
            ("{teacher: {lr", "{techer: {lr"),
            r"tasks\.rte\.stages\.techer is no stage of this recipe; did you mean teacher\?",
        ),
        (
            ("rte: {train: {epochs: 7}, stages: {teacher: {lr: 1e-3}}}", "rte: 7"),
            r"tasks\.rte= takes no value of its own",
        ),
        (("tasks:\n  rte: {train: {epochs: 7}, stages: {teacher: {lr: 1e-3}}}", "tasks: 7"), "tasks is no mapping"),
    ],
)
def test_a_wrong_value_is_refused_whatever_the_task(tmp_path, change, message):
    (tmp_path / "own.yaml").write_text(RECIPE.replace(*change))
    with pytest.raises(InputError, match=message):
        load_config([f"recipe={tmp_path / 'own.yaml'}", "task=mrpc"])


def test_a_task_that_may_be_misspelt_is_told(tmp_path, caplog):
    (tmp_path / "own.yaml").write_text(RECIPE.replace("rte:", "mlni:"))
    load_config([f"recipe={tmp_path / 'own.yaml'}", "task=mnli"])
    assert "tasks.mlni of the recipe is no task of conf/; did you mean mnli?" in caplog.text


def test_a_recipe_stands_in_place_of_a_pipeline():
    with pytest.raises(InputError, match="recipe=xtc-6l-w1a8 and pipeline=singlestage are both given"):
        load_config(["recipe=xtc-6l-w1a8", "pipeline=singlestage", "task=rte"])
    with pytest.raises(InputError, match=r"pipeline= is missing; .*or recipe= with one of binarybert-w1a4"):
        load_config(["task=rte"])
