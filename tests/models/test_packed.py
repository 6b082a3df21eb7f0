"""Packed students: the simulation's very logits, in every family; damaged folders are refused."""

import copy
import gc
import json
import logging
import pickle
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    pipeline,
)

import bitkd
from bitkd.engine.build import MODE
from bitkd.errors import InputError
from bitkd.files import checksum
from bitkd.models.artifact import load_classifier, load_encoder, load_student, new_classifier, save_student
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.importance import estimate_importance
from bitkd.models.packed import int8_parts, is_packed, load_packed, pack_student, save_packed
from bitkd.models.packed_record import config_digest
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.models.unpacked import unpack_student
from bitkd.pretrained.load import read_model_config
from bitkd.quant.int8 import Int8Weight
from bitkd.quant.layout import input_limits
from bitkd.quant.modules import SCALE_NAMES
from bitkd.quant.packed import PackedWeight
from bitkd.quant.packing import TRITS, TWO_BITS
from bitkd.quant.spec import QuantSpec
from tests.models.conftest import batch, classifier
from tests.models.test_families import ROWS, WORKING
from tests.models.test_families import make as make_family

W1A8 = QuantSpec(weight_bits=1, activation_bits=8, attention_activations=True)
W2A8 = QuantSpec(weight_bits=2, activation_bits=8)


@pytest.fixture(autouse=True)
def packed_layers(monkeypatch):
    """These laws are those of packed layers; tests/engine compares them with the engine."""
    monkeypatch.setenv(MODE, "off")


def student(spec=W2A8, split=False):
    model = prepare(classifier(), spec)
    if split:
        split_ternary_(model)
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    return model.eval()


def split_in_part():
    model = student(QuantSpec(weight_bits=2, embedding_bits=1, activation_bits=8), split=True)
    assert read_spec(model).split
    return model


ROW_COLUMN = QuantSpec(weight_bits=1, activation_bits=8, per_row=True, column_scales=True, pooler=True)


def learned(spec, model=None):
    """With scales that are no longer the computed ones."""
    model = prepare(model or classifier(), spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, scale in model.named_parameters():
            if name.endswith(SCALE_NAMES):
                scale.mul_(0.5 + torch.rand(scale.shape, generator=generator))
    return model.eval()


def learned_and_split():
    split = student(replace(ROW_COLUMN, weight_bits=2), split=True)
    return learned(replace(ROW_COLUMN, learned_scales=True), split)


VARIETIES = {
    "W1A8": lambda: student(W1A8),
    "W1A8, 2-bit words": lambda: student(QuantSpec(weight_bits=1, embedding_bits=2, activation_bits=8)),
    "W1A32": lambda: student(QuantSpec(weight_bits=1)),
    "W2A8 per row": lambda: student(QuantSpec(weight_bits=2, activation_bits=8, per_row=True)),
    "FP32 layers, 1-bit words": lambda: student(QuantSpec(embedding_bits=1)),
    "pooler": lambda: student(QuantSpec(weight_bits=1, activation_bits=8, pooler=True)),
    "split": lambda: student(QuantSpec(weight_bits=2, activation_bits=8, per_row=True, pooler=True), split=True),
    "split, FP32 activations": lambda: student(QuantSpec(weight_bits=2), split=True),
    "split in part": split_in_part,
    "row x column": lambda: student(ROW_COLUMN),
    "row x column, W2A8": lambda: student(replace(ROW_COLUMN, weight_bits=2)),
    "row x column, FP32 activations": lambda: student(replace(ROW_COLUMN, activation_bits=32)),
    "row x column, split": lambda: student(replace(ROW_COLUMN, weight_bits=2), split=True),
    "row x column, four levels": lambda: student(replace(ROW_COLUMN, weight_bits=2, levels=4)),
    "four levels": lambda: student(replace(W2A8, levels=4)),
    "four levels per row": lambda: student(replace(W2A8, levels=4, per_row=True)),
    "learned": lambda: learned(replace(W1A8, learned_scales=True)),
    "learned row x column": lambda: learned(replace(ROW_COLUMN, learned_scales=True)),
    "learned, four levels": lambda: learned(replace(ROW_COLUMN, weight_bits=2, levels=4, learned_scales=True)),
    "learned, W2A8": lambda: learned(replace(W2A8, per_row=True, learned_scales=True)),
    "learned, split": learned_and_split,
    "4-bit words": lambda: student(replace(W1A8, embedding_bits=4)),
    "8-bit words": lambda: student(QuantSpec(embedding_bits=8)),
}


@torch.no_grad()
def check_laws(model, rows, folder, **packing):
    before = copy.deepcopy(model.state_dict())
    save_packed(model, folder, **packing)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    packed = load_packed(folder)
    logits = packed(**rows).logits
    assert any(isinstance(module, PackedWeight) for module in packed.modules())
    for name, tensor in pack_student(model, **packing).state_dict().items():
        assert torch.equal(packed.state_dict()[name], tensor), name

    unpacked = unpack_student(packed)
    assert torch.equal(unpacked(**rows).logits, logits)
    save_student(unpacked, folder / "unpacked")
    again = load_student(folder / "unpacked")
    assert torch.equal(again(**rows).logits, logits)
    save_packed(again, folder / "again", **packing)
    assert checksum(folder / "again" / "model.safetensors") == checksum(folder / "model.safetensors")
    return packed


@pytest.mark.parametrize(
    ("name", "ternary"),
    [*((name, TWO_BITS) for name in VARIETIES), ("W1A8, 2-bit words", TRITS), ("W2A8 per row", TRITS)],
)
def test_packing_unpacking_and_packing_again_changes_no_bit(name, ternary, tmp_path):
    model = VARIETIES[name]()
    rows = batch(length=11)
    packed = check_laws(model, rows, tmp_path, ternary=ternary, int8=int8_parts(model))
    assert sum(isinstance(module, Int8Weight) for module in packed.modules()) == len(int8_parts(model))


@pytest.mark.parametrize("name", WORKING)
def test_every_family_is_packed(name, tmp_path):
    teacher = make_family(name)
    importance = estimate_importance(teacher, [ROWS | {"labels": torch.tensor([0, 1])}])
    model = prepare(build_student(teacher, ShapeSpec(layers=[1, 3], width=0.5), importance), W2A8).eval()
    split_ternary_(model)
    packed = check_laws(model, ROWS, tmp_path, int8=int8_parts(model))
    assert int8_parts(model), name
    assert input_limits(packed) == input_limits(model)
    # The encoder alone, as AutoModel reads it.
    encoder = AutoModel.from_pretrained(tmp_path)
    hidden = packed.base_model(**ROWS).last_hidden_state
    assert torch.equal(encoder(**ROWS).last_hidden_state, hidden)
    encoder.save_pretrained(tmp_path / "encoder")
    assert torch.equal(load_packed(tmp_path / "encoder")(**ROWS).last_hidden_state, hidden)


def in_file(folder):
    return load_file(folder / "model.safetensors")


def test_a_packed_file_holds_bits_scales_and_fp16(tmp_path):
    model = student(W1A8)
    save_packed(model, tmp_path, int8=["bert.pooler.dense"])
    tensors = in_file(tmp_path)
    query = "bert.encoder.layer.0.attention.self.query"
    assert tensors[f"{query}.packed"].shape == (32, 4)
    assert {name.rpartition(".")[2]: tensor.dtype for name, tensor in tensors.items() if name.startswith(query)} == {
        "packed": torch.uint8,
        "scale": torch.float32,
        "bias": torch.float16,
    }
    assert tensors["bert.embeddings.word_embeddings.scale"].shape == (60,)
    assert tensors["bert.pooler.dense.codes"].dtype == torch.int8
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bitkd-bert"
    assert config["quantization_config"] == {
        "quant_method": "bitkd",
        "packed": {
            "format": 1,
            "ternary": "2 bits",
            "int8": ["bert.pooler.dense"],
            "checksum": checksum(tmp_path / "model.safetensors"),
            "config": config_digest(config),
        },
    }
    with open(tmp_path / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt"}


def test_from_pretrained_reads_a_packed_folder_and_save_pretrained_writes_the_same(tmp_path, tiny_tokenizer):
    one = tmp_path / "one"
    save_packed(student(), one, tiny_tokenizer, int8=["bert.embeddings.position_embeddings"])
    logits = load_packed(one)(**batch()).logits
    config = AutoConfig.from_pretrained(one)
    assert (type(config).__name__, config.model_type, is_packed(config)) == ("BertConfig", "bert", True)
    for auto in (AutoModelForSequenceClassification, BertForSequenceClassification):
        model = auto.from_pretrained(one, dtype=torch.float16)
        assert torch.equal(model(**batch()).logits, logits)
        assert model.config.model_type == "bert"
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for copied in (model, copy.deepcopy(model), pack_student(student())):
            copied.save_pretrained(tmp_path / "two")
            assert is_packed(AutoConfig.from_pretrained(tmp_path / "two"))
        model.save_pretrained(tmp_path / "two")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()
    assert type(AutoTokenizer.from_pretrained(one)) is type(tiny_tokenizer)
    found = pipeline("text-classification", model=str(one))("a dog sees the cat")
    assert (
        found[0]["label"]
        == f"LABEL_{load_packed(one)(**tiny_tokenizer('a dog sees the cat', return_tensors='pt')).logits.argmax()}"
    )


def test_push_to_hub_uploads_what_save_packed_writes(tmp_path, monkeypatch):
    model = pack_student(student())
    save_packed(model, tmp_path / "one")
    uploaded, created, committed = {}, [], []

    class Hub:
        def create_repo(self, repo_id, **settings):
            created.append(settings)
            return type("Url", (), {"repo_id": repo_id})

        def create_branch(self, **_):
            pass

        def create_commit(self, repo_id, operations, **settings):
            committed.append(settings)
            for operation in operations:
                with operation.as_file() as file:
                    uploaded[operation.path_in_repo] = file.read()

    class Card:
        def save(self, file):
            open(file, "w").close()

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: Card())
    for push in (lambda: model.push_to_hub("me/it"), lambda: model.save_pretrained(tmp_path / "it", push_to_hub=True)):
        uploaded.clear()
        push()
        assert uploaded.keys() == {"README.md", "config.json", "model.safetensors"}
        for name in ("config.json", "model.safetensors"):
            assert uploaded[name] == (tmp_path / "one" / name).read_bytes()
    settings = {"private": True, "revision": "next", "token": "t", "create_pr": True, "commit_message": "new"}
    model.save_pretrained(tmp_path / "it", push_to_hub=True, repo_id="me/it", max_shard_size="5GB", **settings)
    found = created[-1] | committed[-1]
    assert {name: found[name] for name in settings} == settings
    with pytest.raises(TypeError, match="privat"):
        model.save_pretrained(tmp_path / "it", push_to_hub=True, privat=True)


def test_a_packed_model_stays_in_fp32(tmp_path):
    model = pack_student(student())
    logits = model(**batch()).logits
    for convert in (lambda: model.half(), lambda: model.bfloat16(), lambda: model.to(torch.float16)):
        with pytest.raises((InputError, ValueError), match=r"computes in FP32|not supported for quantized"):
            convert()
    assert torch.equal(model.to("cpu")(**batch()).logits, logits)


def test_copies_of_a_packed_model_save_themselves(tmp_path):
    model = pack_student(student())
    shallow = copy.copy(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(shallow)):
        with torch.no_grad():
            copied.classifier.bias.fill_(1)
        copied.save_pretrained(tmp_path)
        assert torch.equal(load_packed(tmp_path)(**batch()).logits, copied(**batch()).logits)
        assert not torch.equal(copied.classifier.bias, model.classifier.bias)


def test_a_shallow_copy_saves_itself_also_when_its_model_is_gone(tmp_path):
    model = pack_student(student())
    copied = copy.copy(model)
    copied.config = copy.deepcopy(model.config)
    copied.config.id2label = {0: "a", 1: "b", 2: "c"}
    copied.save_pretrained(tmp_path / "one")
    del model
    gc.collect()
    copied.save_pretrained(tmp_path / "two")
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert load_packed(folder).config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("kind", ["an artifact", "a student", "a plain model"])
def test_what_can_be_trained_is_not_overwritten_by_a_packed_model(kind, tmp_path):
    if kind == "a plain model":
        classifier().save_pretrained(tmp_path)
    else:
        save_student(student(), tmp_path)
    if kind == "an artifact":
        (tmp_path / "stage.json").write_text("{}")
    before = checksum(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="name another folder"):
        save_packed(student(), tmp_path)
    with pytest.raises(InputError, match="name another folder"):
        pack_student(student()).save_pretrained(tmp_path)
    assert checksum(tmp_path / "model.safetensors") == before


def test_packing_does_not_depend_on_the_default_device():
    model = student()
    expected = pack_student(model, int8=int8_parts(model)).state_dict()
    torch.set_default_device("meta")
    try:
        found = pack_student(model, int8=int8_parts(model)).state_dict()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_saving_a_packed_model_by_other_means_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"use bitkd\.save_packed"):
        BertForSequenceClassification.save_pretrained(pack_student(student()), tmp_path)


def test_a_packed_model_is_freed_as_soon_as_nothing_holds_it(tmp_path):
    save_packed(student(), tmp_path)
    gc.collect()
    gc.disable()
    try:
        for make in (lambda: load_packed(tmp_path), lambda: pack_student(student())):
            model = make()
            held = weakref.ref(model)
            del model
            assert held() is None
    finally:
        gc.enable()


def test_a_packed_model_is_saved_as_it_is(tmp_path):
    model = pack_student(student())
    for wrong in ({"state_dict": {}}, {"variant": "fp16"}):
        with pytest.raises(InputError, match="leave out state_dict and variant"):
            model.save_pretrained(tmp_path / "out", **wrong)
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_load_functions_take_packed_folders_or_refuse_them(tmp_path):
    save_packed(student(), tmp_path)
    logits = load_packed(tmp_path)(**batch()).logits
    assert is_packed(load_classifier(tmp_path).config)
    trainable = load_student(tmp_path)
    assert not is_packed(trainable.config)
    assert torch.equal(trainable(**batch()).logits, logits)
    assert all(parameter.requires_grad for parameter in trainable.parameters())
    for load in (load_encoder, lambda folder: new_classifier(folder, ["a", "b"])):
        with pytest.raises(InputError, match="holds a packed model, which is for inference only"):
            load(tmp_path)
    save_packed(prepare(classifier(), W1A8), tmp_path / "headless")
    with pytest.raises(InputError, match="has no trained head"):
        load_classifier(tmp_path / "headless")
    save_student(student(), tmp_path / "student")
    with pytest.raises(InputError, match="holds no packed model"):
        load_packed(tmp_path / "student")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: prepare(model, QuantSpec()), "cannot be quantized"),
        (lambda model: build_student(model, ShapeSpec()), "cannot be made smaller"),
        (lambda model: estimate_importance(model, []), "cannot be made smaller"),
        (lambda model: save_student(model, "nowhere"), "cannot be saved as an artifact"),
        (lambda model: bitkd.FineTune(model).configure_optimizers(), "cannot be trained"),
        (lambda model: pack_student(model), "is packed already"),
    ],
)
def test_what_is_for_training_refuses_a_packed_model(use, message):
    with pytest.raises(InputError, match=message):
        use(pack_student(student()))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (classifier, {}, r"has no quantized weights to pack \(weight_bits=32\)"),
        (lambda: student(QuantSpec(activation_bits=8)), {}, "has no quantized weights to pack"),
        (student, {"int8": ["bert.encoder.layer.0.output.dense"]}, r"cannot have 8 bits; what can: bert\.emb"),
        (student, {"int8": ["../pooler"]}, "cannot have 8 bits"),
        (student, {"int8": ["classifier.dense.weight"]}, "cannot have 8 bits"),
    ],
)
def test_what_cannot_be_packed_is_refused(make, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        save_packed(make(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused():
    model = student()
    with torch.no_grad():
        model.classifier.bias[0] = 1e5
    with pytest.raises(InputError, match=r"classifier\.bias has values that are not finite in FP16"):
        pack_student(model)


# Damage


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    save_packed(student(), folder, ternary=TRITS, int8=["bert.pooler.dense"])
    return folder


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def config(**entries):
    def edit(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return edit


def record(remove=(), **entries):
    def edit(folder):
        file = folder / "config.json"
        content = json.loads(file.read_text())
        packed = content["quantization_config"]["packed"] | entries
        content["quantization_config"]["packed"] = {key: packed[key] for key in packed if key not in remove}
        file.write_text(json.dumps(content))

    return edit


def tensors(change):
    """Other tensors in the file, and its checksum to match."""

    def edit(folder):
        file = folder / "model.safetensors"
        content = load_file(file)
        change(content)
        save_file(content, file, metadata={"format": "pt"})
        record(checksum=checksum(file))(folder)

    return edit


def section(**entries):
    """Other entries of the section `quant` of a student's record."""

    def edit(folder):
        content = json.loads((folder / "config.json").read_text())["bitkd"]
        config(bitkd=content | {"quant": content["quant"] | entries})(folder)

    return edit


CHANGED = r"config\.json was changed after it was written, in an entry that decides logits"
QUERY = "bert.encoder.layer.0.attention.self.query"
DAMAGE = {
    "cut short": (cut_short, "is cut short|is damaged: its SHA-256"),
    "flipped": (flip, "is damaged: its SHA-256 is"),
    "newer": (record(format=2), r"format 2, this version of bitkd reads 1; install a newer bitkd"),
    "no format": (record(["format"]), "format None"),
    "no record": (config(quantization_config={"quant_method": "bitkd", "packed": 3}), "packed is 3, not how"),
    "unknown packing": (record(ternary="3 bits"), r"ternary is '3 bits', not one of 2 bits, 5 in a byte"),
    "other packing": (record(ternary="2 bits"), r"packed is U8 of shape \(60, 7\), not U8 of shape \(60, 8\)"),
    "missing field": (record(["checksum"]), r"checksum is None, not a str"),
    "unknown field": (record(code="evil()"), "unknown entry 'code'"),
    "int8 elsewhere": (record(int8=["../../pooler"]), r"int8 names '\.\./\.\./pooler', which cannot have 8 bits"),
    "int8 of a layer": (record(int8=[QUERY]), "which cannot have 8 bits"),
    "int8 no name": (record(int8=[3]), "int8 names 3"),
    "other labels": (
        config(id2label={"0": "a", "1": "b"}),
        r"classifier\.weight is F16 of shape \(3, 32\), not F16 of shape \(2, 32\)",
    ),
    "other size": (config(vocab_size=61), r"does not fit its config\.json: bert\.embeddings\.word"),
    "more heads": (config(num_attention_heads=8), CHANGED),
    "other function": (config(hidden_act="relu"), CHANGED),
    "other epsilon": (config(layer_norm_eps=1e-3), CHANGED),
    "new entry": (config(chunk_size_feed_forward=2), CHANGED),
    "other activation bits": (section(activation_bits=32), CHANGED),
    "lacks": (tensors(lambda found: found.pop("classifier.bias")), r"it lacks classifier\.bias"),
    "extra": (tensors(lambda found: found.update(extra=torch.ones(1))), "it has extra, which the model has not"),
    "wrong type": (tensors(lambda found: found.update({f"{QUERY}.scale": torch.ones(1).half()})), "is F16 of shape"),
    "NaN": (tensors(lambda found: found[f"{QUERY}.scale"].fill_(torch.nan)), "NaN or infinite"),
    "negative": (tensors(lambda found: found[f"{QUERY}.scale"].neg_()), r"query has values that no packing gives"),
    "bytes": (tensors(lambda found: found[f"{QUERY}.packed"].fill_(243)), r"query has values that no packing gives"),
    "digits": (tensors(lambda found: found[f"{QUERY}.packed"][:, -1].fill_(242)), r"has values that no packing gives"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused(name, packed_folder, tmp_path):
    damage, message = DAMAGE[name]
    folder = tmp_path / "folder"
    shutil.copytree(packed_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_packed(folder)
    with pytest.raises((InputError, OSError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_config_that_transformers_writes_again_still_fits(packed_folder, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(packed_folder, folder)
    logits = load_packed(folder)(**batch()).logits
    written = AutoConfig.from_pretrained(folder)
    written.id2label = {0: "a", 1: "b", 2: "c"}
    written.save_pretrained(folder)
    config(transformers_version="6.0.0")(folder)
    loaded = load_packed(folder)
    assert loaded.config.id2label[1] == "b"
    assert torch.equal(loaded(**batch()).logits, logits)


def test_an_encoder_is_no_classifier(tmp_path):
    save_packed(student().bert, tmp_path)
    with pytest.raises(InputError, match=r"it lacks classifier"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_an_artifact_of_the_stock_model_type_still_loads(tmp_path):
    save_student(student(), tmp_path)
    logits = load_student(tmp_path)(**batch()).logits
    assert read_model_config(tmp_path).model_type == "bert"
    config(model_type="bert")(tmp_path)
    assert torch.equal(load_student(tmp_path)(**batch()).logits, logits)
    assert torch.equal(BertForSequenceClassification.from_pretrained(tmp_path)(**batch()).logits, logits)


def test_only_the_warning_about_a_students_model_type_is_dropped(caplog):
    log = logging.getLogger("transformers.configuration_utils")
    kept = ["cannot read /models/bitkd-students/config.json", "a model of type `other` for a bitkd-bert"]
    with caplog.at_level("WARNING", log.name):
        log.addHandler(caplog.handler)  # transformers' loggers do not pass records on
        try:
            for message in (*kept, "You are using a model of type `bitkd-bert` to instantiate a model of type `bert`."):
                log.warning(message)
        finally:
            log.removeHandler(caplog.handler)
    assert list(dict.fromkeys(record.getMessage() for record in caplog.records)) == kept
