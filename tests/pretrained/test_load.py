"""What is wrong with a checkpoint is found before it is used: with its file, its cause, and what to do."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import BertNormalizer
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, BertForSequenceClassification

from bitkd.cli import main
from bitkd.data.augment.candidates import load_embeddings, load_masked_lm
from bitkd.data.hub import load_tokenizer, sample_rows, token_difference
from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, load_encoder, load_student, new_classifier, save_student
from bitkd.pretrained.files import check_checkpoint_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
LABELS = ["entailment", "not_entailment"]


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory, tiny_tokenizer):
    """The folder of a plain classifier of RTE's labels, with its tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **size, **names)
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def planned(tmp_path_factory):
    """A run folder in which facts about the undamaged sources are kept, once they are known."""
    return tmp_path_factory.mktemp("planned")


@pytest.fixture
def folder(classifiers, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(classifiers, tmp_path / "model")


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_weights(change):
    def damage(folder):
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return damage


def with_value(name, value):
    def change(state):
        state[name][0] = value
        return state

    return change_weights(change)


def with_prefix(prefix):
    return change_weights(lambda state: {prefix + name: tensor for name, tensor in state.items()})


def pickled(content, name="pytorch_model.bin"):
    def damage(folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        torch.save(content(model), folder / name)

    return damage


def sharded(change):
    """Weights in several files, and a change of these."""

    def damage(folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="30KB")
        shards = sorted(folder.glob("*.safetensors"))
        assert len(shards) > 2
        change(folder, shards)

    return damage


def set_config(**settings):
    def damage(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | settings))

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def add_tokens(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["zebra", "xylophone"])
    tokenizer.save_pretrained(folder)


DAMAGES = {
    "pointer": (write("model.safetensors", POINTER), r"model\.safetensors is a git-lfs pointer.*`git lfs pull`"),
    "empty": (write("model.safetensors", b""), r"model\.safetensors is empty; download or copy it again"),
    "cut": (cut, r"model\.safetensors is cut short; download or copy it again"),
    "web page": (write("model.safetensors", b"<!DOCTYPE html><html>Not found</html>"), "is a web page"),
    "no safetensors": (write("model.safetensors", b"\x00weights" * 99), "is no safetensors file"),
    "pickle by another name": (pickled(lambda m: m.state_dict(), "model.safetensors"), "is a pickle of torch.save"),
    "pickled module": (pickled(lambda m: m), r"cannot be loaded: .*; name a folder with a saved model"),
    "pickle cut short": (
        lambda folder: (pickled(lambda m: m.state_dict())(folder), _shorten(folder / "pytorch_model.bin")),
        r"pytorch_model\.bin is cut short",
    ),
    "no weights": (remove("model.safetensors"), r"has no weights \(model\.safetensors or pytorch_model\.bin\)"),
    "weights of another library": (
        lambda folder: (folder / "model.safetensors").rename(folder / "tf_model.h5"),
        r"has no weights .*; it has tf_model\.h5; save the model",
    ),
    "not a number": (
        with_value("bert.encoder.layer.1.output.dense.weight", torch.nan),
        r"1 weights have values that are NaN or infinite \(first: .*layer\.1\.output\.dense\.weight\)",
    ),
    "infinite": (with_value("bert.embeddings.word_embeddings.weight", -torch.inf), "are NaN or infinite"),
    "DataParallel": (with_prefix("module."), r"begin with module\. as DataParallel's do.*save model\.module"),
    "compiled": (with_prefix("_orig_mod."), r"begin with _orig_mod\..*torch\.compile"),
    "inside another model": (with_prefix("model."), r"begin with model\..*such as model\."),
    "renamed": (
        change_weights(lambda state: {name.replace("bert.", "x"): tensor for name, tensor in state.items()}),
        "The file has other names, such as 'x",
    ),
    "other sizes": (set_config(vocab_size=999), r"has the size \(\d+, 32\) and by config\.json \(999, 32\)"),
    "fewer layers": (set_config(num_hidden_layers=1), r"layers that its config\.json leaves out, such as .*layer\.1\."),
    "no shard": (
        sharded(lambda folder, shards: shards[1].unlink()),
        r"model\.safetensors\.index\.json names the shard model-00002-.* which is missing",
    ),
    "shard pointer": (
        sharded(lambda folder, shards: shards[1].write_bytes(POINTER)),
        r"model-00002-.* is a git-lfs pointer",
    ),
    "shards exchanged": (
        sharded(lambda folder, shards: shutil.copy(shards[0], shards[1])),
        r"model-00002-of-.* lacks .*, which model\.safetensors\.index\.json says is in it",
    ),
    "shard elsewhere": (
        sharded(lambda folder, shards: _replace(folder / "model.safetensors.index.json", "model-", "../model-")),
        r"names the shard '\.\./model-.*', which is no file beside it",
    ),
    "index pointer": (
        sharded(lambda folder, shards: write("model.safetensors.index.json", POINTER)(folder)),
        r"index\.json is a git-lfs pointer",
    ),
    "config pointer": (write("config.json", POINTER), r"config\.json is a git-lfs pointer"),
    "config empty": (write("config.json", b""), r"config\.json is empty"),
    "config list": (write("config.json", b"[1]"), r"config\.json holds no JSON object but list"),
    "config no text": (write("config.json", b"\xff\xfe"), r"config\.json is not valid JSON"),
    "no type": (set_config(model_type=None), r"config\.json names no model_type"),
    "unknown type": (set_config(model_type="perceptron"), r"config\.json cannot be used: .*perceptron"),
    "wrong value": (set_config(hidden_size="large"), r"config\.json cannot be used"),
    "code of its own": (
        set_config(model_type="x", auto_map={"AutoConfig": "own.Config"}),
        r"config\.json cannot be used",
    ),
    "tokenizer pointer": (write("tokenizer.json", POINTER), r"tokenizer\.json is a git-lfs pointer"),
    "tokenizer damaged": (write("tokenizer.json", b"{"), r"has no tokenizer \("),
    "more tokens": (add_tokens, r"its tokenizer has \d+ tokens .*'xylophone'.* embeddings; save the model after"),
}


def _shorten(file):
    file.write_bytes(file.read_bytes()[:-100])


def _replace(file, old, new):
    file.write_text(file.read_text().replace(old, new))


OF_TOKENIZER = {name for name in DAMAGES if "tokenizer" in name or name == "more tokens"}


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in OF_TOKENIZER])
def test_no_model_is_loaded_from_a_damaged_checkpoint(name, folder):
    damage, message = DAMAGES[name]
    damage(folder)
    for load in (load_encoder, load_classifier, lambda folder: new_classifier(folder, ["a", "b"]), load_embeddings):
        with pytest.raises(InputError, match=message) as refused:
            load(folder)
        assert "model" in str(refused.value)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", sorted(OF_TOKENIZER))
def test_no_tokenizer_is_loaded_from_a_damaged_checkpoint(name, folder):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("setting", ["model.pretrained", "stages.teacher.checkpoint", "task.augmentation.model"])
def test_a_damaged_checkpoint_is_refused_by_plan(name, setting, folder, settings, planned, capsys):
    damage, _ = DAMAGES[name]
    damage(folder)
    more = ["task.augmentation.enabled=true"] if "augmentation" in setting else []
    assert main(["plan", *settings(planned, "singlestage", f"{setting}={folder}", *more)]) == 2
    refusal = capsys.readouterr().err.strip()
    assert str(folder) in refusal
    assert "Traceback" not in refusal


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_evaluate_and_predict(name, folder, tiny_task, capsys):
    damage, _ = DAMAGES[name]
    damage(folder)
    local = ["task=rte", f"data.dir={tiny_task}", "data.max_length=32", "trainer.accelerator=cpu"]
    assert main(["evaluate", str(folder), *local]) == 2
    assert main(["predict", str(folder), "--text", "a dog", "--text-pair", "a cat"]) == 2
    assert str(folder) in capsys.readouterr().err


def test_weights_in_shards_and_in_pickles_are_read(folder):
    whole = load_classifier(folder).state_dict()
    sharded(lambda folder, shards: None)(folder)
    torch.testing.assert_close(load_classifier(folder).state_dict(), whole)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    torch.testing.assert_close(load_classifier(folder).state_dict(), whole)


def test_a_head_for_other_labels_is_refused(folder, settings, tmp_path, capsys):
    set_config(id2label={i: str(i) for i in range(3)}, label2id={str(i): i for i in range(3)})(folder)
    with pytest.raises(InputError, match=r"no trained head.*size \(2, 32\) and by config\.json \(3, 32\)|\(2,\) and"):
        load_classifier(folder)
    set_config(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})(folder)
    assert main(["plan", *settings(tmp_path / "runs", "singlestage", f"stages.teacher.checkpoint={folder}")]) == 2
    assert f"stages.teacher.checkpoint={folder}: the checkpoint's labels ['yes', 'no']" in capsys.readouterr().err


def test_a_masked_language_model_whose_embeddings_are_missing_is_refused(tiny_tokenizer, tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tiny_tokenizer), **size)).save_pretrained(tmp_path)
    load_masked_lm(tmp_path)
    with_prefix("module.")(tmp_path)
    for load in (load_embeddings, load_masked_lm):
        with pytest.raises(InputError, match=r"begin with module\. as DataParallel's do"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["pointer", "empty", "cut", "pickle by another name", "config pointer"])
def test_a_damaged_artifact_is_refused(name, folder, tmp_path):
    save_student(load_classifier(folder), tmp_path / "artifact")
    damage, message = DAMAGES[name]
    if name == "pickle by another name":
        (tmp_path / "artifact" / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(99))
    else:
        damage(tmp_path / "artifact")
    with pytest.raises(InputError, match=message):
        load_student(tmp_path / "artifact")


def test_an_artifact_with_weights_that_are_no_numbers_is_refused(folder, tmp_path):
    save_student(load_classifier(folder), tmp_path / "artifact")
    with_value("classifier.bias", torch.nan)(tmp_path / "artifact")
    with pytest.raises(InputError, match=r"NaN or infinite \(first: classifier\.bias\)"):
        load_student(tmp_path / "artifact")


def test_files_are_checked_without_torch(classifiers):
    code = f"""
import sys
from pathlib import Path
from bitkd.pretrained.files import check_checkpoint_files
check_checkpoint_files(Path({str(classifiers)!r}))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    check_checkpoint_files(classifiers)


def cased(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)
    return other


def test_tokenizers_are_compared_on_the_rows_themselves(tiny_tokenizer):
    other = cased(tiny_tokenizer)
    assert token_difference(other, tiny_tokenizer, [("a dog", "runs"), ("中文", ".")]) is None
    found = token_difference(other, tiny_tokenizer, [("a dog", "runs"), ("a Dog", "runs")])
    assert found == "of ('a Dog', 'runs') it makes ['[CLS]', 'a', '[UNK]', '[SEP]', 'runs', '[SEP]'] and not " + str(
        ["[CLS]", "a", "dog", "[SEP]", "runs", "[SEP]"]
    )
    other = copy.deepcopy(tiny_tokenizer)
    other.backend_tokenizer.normalizer = BertNormalizer(lowercase=True, handle_chinese_chars=False)
    assert token_difference(other, tiny_tokenizer, [("a dog",)]) is None
    assert "中文" in token_difference(other, tiny_tokenizer, [("a dog",), ("中文",)])
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["zebra"])
    assert token_difference(other, tiny_tokenizer, []) == "the vocabularies differ, such as in 'zebra'"


def test_a_sample_of_rows_has_every_character():
    rows = [(f"row {number % 7}", "x") for number in range(100_000)]
    rows[77_777] = ("row 3", "Ärger")
    chosen = sample_rows(rows)
    assert rows[77_777] in chosen
    assert 1000 <= len(chosen) < 1030
    assert sample_rows(rows[:5]) == rows[:5]
    assert sample_rows([]) == []


def test_a_teacher_that_reads_a_row_differently_is_refused(
    folder, tiny_tokenizer, settings, tiny_task, tmp_path, capsys
):
    cased(tiny_tokenizer).save_pretrained(folder)
    overrides = settings(tmp_path / "runs", "singlestage", f"stages.teacher.checkpoint={folder}")
    assert main(["plan", *overrides]) == 0  # every row is in lower case
    data = shutil.copytree(tiny_task, tmp_path / "data")
    with open(data / "RTE" / "train.tsv", "a") as file:
        file.write("99\tThe dog runs\ta cat\tentailment\n")
    assert main(["plan", *overrides, f"data.dir={data}"]) == 2
    assert "has another tokenizer than" in (refusal := capsys.readouterr().err)
    assert "of ('The dog runs', 'a cat') it makes ['[CLS]', '[UNK]', 'dog'" in refusal
    assert "set model.pretrained= to the model that it was fine-tuned from" in refusal
