from dataclasses import asdict

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, ElectraConfig, RobertaConfig

from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, load_encoder, load_student, new_classifier, save_student
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.importance import Importance, estimate_importance
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.size import measure
from bitkd.models.spec import ShapeSpec, check_shape
from bitkd.models.student import add_head, build_student
from bitkd.models.teacher_map import map_student
from bitkd.quant.spec import QuantSpec

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}


def classifier(config=None, seed=0):
    torch.manual_seed(seed)
    config = config or BertConfig(**SHAPE)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
    with torch.no_grad():  # the stock initialization is so small that heads hardly differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(rows=3, length=9, padding=2):
    torch.manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, length - padding :] = 0
    return {"input_ids": torch.randint(5, 60, (rows, length)), "attention_mask": mask}


def importance_of(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    layers = len(encoder_layers(model))
    return Importance(torch.rand(layers, 4, generator=generator), torch.rand(layers, 64, generator=generator))


def test_captured_scores_softmax_to_the_stock_attentions():
    model = classifier()
    stock = AutoModelForSequenceClassification.from_config(BertConfig(**SHAPE), attn_implementation="eager").eval()
    stock.load_state_dict(model.state_dict())
    inputs = batch()
    ours, theirs = (m(**inputs, output_attentions=True) for m in (model, stock))
    hidden_keys = inputs["attention_mask"][:, None, None, :] == 0
    for scores, probabilities in zip(ours.attentions, theirs.attentions):
        torch.testing.assert_close(scores.masked_fill(hidden_keys, -torch.inf).softmax(-1), probabilities)
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_a_full_copy_has_the_teachers_outputs():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec()).eval()
    torch.testing.assert_close(student(**batch()).logits, teacher(**batch()).logits)


def test_chosen_layers_are_copied_and_remembered():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[1, 3]))
    assert read_spec(student).layers == [1, 3]
    for mine, theirs in zip(encoder_layers(student), (encoder_layers(teacher)[1], encoder_layers(teacher)[3])):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    grandchild = build_student(student, ShapeSpec(layers=[1]))
    assert read_spec(grandchild).layers == [3]


def test_a_half_width_student_has_the_kept_heads_outputs():
    teacher = classifier()
    importance = importance_of(teacher)
    student = build_student(teacher, ShapeSpec(width=0.5), importance).eval()
    kept = read_spec(student).kept_heads[0]
    assert kept == sorted(importance.heads[0].topk(2).indices.tolist())
    contexts = []
    for model in (teacher, student):
        block = encoder_layers(model)[0].attention.output.dense
        block.register_forward_pre_hook(lambda _, args: contexts.append(args[0]))
        model(**batch())
    wide, narrow = (context.unflatten(-1, (-1, 8)) for context in contexts)
    torch.testing.assert_close(narrow, wide[:, :, kept])


def test_the_neurons_that_matter_most_are_kept():
    teacher = classifier()
    importance = importance_of(teacher)
    student = build_student(teacher, ShapeSpec(width=0.25), importance)
    rows = importance.neurons[2].topk(16).indices.sort().values
    torch.testing.assert_close(
        encoder_layers(student)[2].intermediate.dense.weight, encoder_layers(teacher)[2].intermediate.dense.weight[rows]
    )


def test_importance_finds_the_head_and_the_neuron_that_do_nothing():
    teacher = classifier()
    with torch.no_grad():
        encoder_layers(teacher)[1].attention.output.dense.weight[:, 8:16] = 0
        encoder_layers(teacher)[2].output.dense.weight[:, 5] = 0
    rows = [batch() | {"labels": torch.tensor([0, 1, 2])}]
    for model, batches in ((teacher, rows), (teacher.base_model, [batch()])):
        importance = estimate_importance(model, batches)
        assert importance.heads[1].argmin() == 1
        assert importance.heads[1, 1] == 0
        assert importance.neurons[2, 5] == 0
        assert (importance.heads > 0).sum() == 15


def test_importance_is_the_published_weight_times_gradient():
    teacher = classifier()
    rows = batch() | {"labels": torch.tensor([0, 1, 2])}
    importance = estimate_importance(teacher, [rows])
    teacher(**rows).loss.backward()
    weight = encoder_layers(teacher)[0].output.dense.weight
    torch.testing.assert_close(importance.neurons[0], (weight * weight.grad).sum(0).abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", [RobertaConfig, ElectraConfig])
def test_other_bert_shaped_encoders_work_alike(family, tmp_path):
    teacher = classifier(family(**SHAPE, pad_token_id=0))
    student = build_student(teacher, ShapeSpec(layers=[0, 2], width=0.5), importance_of(teacher))
    prepare(student, QuantSpec(weight_bits=1, activation_bits=8))
    student.eval()
    assert student(**batch()).logits.shape == (3, 3)
    encoder = AutoModel.from_config(family(**SHAPE, pad_token_id=0), attn_implementation=ATTENTION)
    headed = add_head(build_student(encoder, ShapeSpec(layers=[0, 2])), teacher)
    torch.testing.assert_close(headed.classifier.state_dict(), teacher.classifier.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_in_half_precision_is_trained_and_kept_in_fp32(tmp_path, dtype):
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SHAPE)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    for load in (load_encoder, load_classifier, lambda folder: new_classifier(folder, ["a", "b", "c"])):
        source = load(tmp_path / "half")
        student = build_student(source, ShapeSpec(layers=[0, 1]))
        assert {p.dtype for p in [*source.parameters(), *student.parameters()]} == {torch.float32}
    teacher = load_classifier(tmp_path / "half")
    with torch.no_grad():
        teacher.classifier.weight.add_(1e-6)
    save_student(teacher, tmp_path / "full")
    assert torch.equal(load_student(tmp_path / "full").classifier.weight, teacher.classifier.weight)


def test_an_encoder_whose_weights_have_another_size_is_refused(tmp_path):
    AutoModel.from_config(BertConfig(**SHAPE)).save_pretrained(tmp_path)
    BertConfig(**SHAPE | {"intermediate_size": 48}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="in another size than its config"):
        new_classifier(tmp_path, ["a", "b"])


def test_a_split_student_is_not_cut_again():
    with pytest.raises(InputError, match="reduce it before splitting"):
        build_student(split_student(), ShapeSpec(layers=[0]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ShapeSpec(layers=[0, 4]), r"layer 4; the source has 4 layers, use numbers from 0 to 3"),
        (ShapeSpec(layers=[-1]), "layer -1"),
        (ShapeSpec(layers=[1, 1]), "repeats a layer or is out of order"),
        (ShapeSpec(layers=[]), "list is empty"),
        (ShapeSpec(width=0.3), r"leaves 1\.2 of 4 heads; .* use one of 0\.25, 0\.5, 0\.75, 1"),
        (ShapeSpec(width=0.0), "leaves 0 of 4 heads"),
        (ShapeSpec(width=2.0), "leaves 8 of 4 heads"),
        (ShapeSpec(hidden_size=16), "needs student.init=random"),
        (ShapeSpec(hidden_size=20, init="random"), "use a multiple of the head size 8"),
        (ShapeSpec(dropout=1.0), r"is not in \[0, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        check_shape(shape, read_spec(BertConfig(**SHAPE)), 4)


def test_an_unknown_initialization_is_refused():
    with pytest.raises(InputError, match=r"student\.init=zeros is unknown; use one of copy, random"):
        ShapeSpec(init="zeros")  # type: ignore[arg-type]


def test_the_map_compares_parts_with_what_they_were_copied_from():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 3], width=0.5), importance_of(teacher))
    found = map_student(read_spec(student), 2, read_spec(teacher), 4)
    assert found.attention == [0, 3]
    assert found.hidden == [0, 1, 4]
    assert found.heads == read_spec(student).kept_heads
    own = map_student(read_spec(student), 2, read_spec(student), 2)
    assert own.attention == [0, 1]
    assert own.heads == [[0, 1], [0, 1]]


def test_the_map_of_a_random_student_is_uniform():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], init="random"))
    found = map_student(read_spec(student), 2, read_spec(teacher), 4)
    assert found.attention == [1, 3]
    assert found.hidden == [0, 2, 4]
    assert found.heads == [[0, 1, 2, 3]] * 2
    narrow = build_student(teacher, ShapeSpec(layers=[0, 1], init="random", width=0.5))
    assert map_student(read_spec(narrow), 2, read_spec(teacher), 4).heads is None
    odd = build_student(teacher, ShapeSpec(layers=[0, 1, 2], init="random"))
    with pytest.raises(InputError, match="3"):
        map_student(read_spec(odd), 3, read_spec(teacher), 4)


def test_a_head_is_added_from_the_teacher():
    teacher = classifier()
    encoder = AutoModel.from_config(BertConfig(**SHAPE), attn_implementation=ATTENTION)
    model = add_head(build_student(encoder, ShapeSpec(layers=[1])), teacher)
    torch.testing.assert_close(model.classifier.weight, teacher.classifier.weight)
    torch.testing.assert_close(model.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    torch.testing.assert_close(model.bert.encoder.layer[0].state_dict(), encoder.encoder.layer[1].state_dict())
    assert read_spec(model).trained_head
    other = build_student(encoder, ShapeSpec(layers=[1], hidden_size=16, init="random"))
    assert not read_spec(add_head(other, teacher)).trained_head


PRECISIONS = [
    QuantSpec(),
    QuantSpec(weight_bits=2, activation_bits=8),
    QuantSpec(weight_bits=1, activation_bits=8, per_row=True, attention_activations=True, pooler=True),
]


@pytest.mark.parametrize("quant", PRECISIONS, ids=["fp32", "ternary", "binary"])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_saved_and_loaded_gives_identical_logits(tmp_path, quant, width):
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[1, 2], width=width), importance_of(teacher))
    prepare(student, quant)
    spec = read_spec(student)
    spec.quant = quant
    student.config.bitkd = spec.__dict__ | {"quant": quant.__dict__}
    save_student(student.eval(), tmp_path / "one")
    loaded = load_student(tmp_path / "one")
    assert torch.equal(loaded(**batch()).logits, student(**batch()).logits)
    save_student(loaded, tmp_path / "two")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def split_student():
    student = build_student(classifier(), ShapeSpec(layers=[1, 2]))
    quant = QuantSpec(weight_bits=2, activation_bits=8)
    prepare(student, quant)
    split_ternary_(student)
    spec = read_spec(student)
    spec.quant, spec.split = QuantSpec(weight_bits=1, activation_bits=8), True
    student.config.bitkd = spec.__dict__ | {"quant": spec.quant.__dict__}
    return student.eval()


def test_a_split_student_is_saved_and_loaded_whole(tmp_path):
    student = split_student()
    save_student(student, tmp_path)
    assert torch.equal(load_student(tmp_path)(**batch()).logits, student(**batch()).logits)


def test_a_folder_that_does_not_fit_its_config_is_refused(tmp_path):
    save_student(build_student(classifier(), ShapeSpec()), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 3'))
    with pytest.raises(InputError, match="does not fit its config"):
        load_student(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_student(tmp_path / "nowhere")


def test_sizes_by_both_conventions_are_the_published_ones():
    with torch.device("meta"):
        model = AutoModel.from_config(BertConfig(num_hidden_layers=12), attn_implementation=ATTENTION)
    assert measure(model).paper_mib == pytest.approx(417.6, abs=0.2)
    quant = QuantSpec(weight_bits=1)
    prepare(model, quant)
    spec = read_spec(model)
    model.config.bitkd = spec.__dict__ | {"quant": quant.__dict__}
    size = measure(model)
    assert size.paper_mib == pytest.approx(13.05, abs=0.05)
    assert size.file_mib == pytest.approx(15.1, abs=0.3)
    with_words = spec.__dict__ | {"quant": quant.__dict__ | {"embedding_bits": 32}}
    model.config.bitkd = with_words
    assert measure(model).paper_mib == pytest.approx(13.05 + 30522 * 768 * 31 / 8 / 2**20, abs=0.05)


def test_a_split_half_width_student_has_the_encoder_bits_of_a_full_width_one():
    half = build_student(classifier(), ShapeSpec(width=0.5), importance_of(classifier()))
    prepare(half, QuantSpec(weight_bits=2))
    split_ternary_(half)
    full = build_student(classifier(), ShapeSpec())
    prepare(full, QuantSpec(weight_bits=1))
    assert measure(half).encoder_bits == measure(full).encoder_bits
    assert measure(half).parameters > measure(full).parameters


def test_a_full_precision_encoder_counts_32_bits_when_only_embeddings_are_quantized():
    model = classifier()
    spec = read_spec(model)
    spec.quant = QuantSpec(embedding_bits=1)
    prepare(model, spec.quant)
    model.config.bitkd = asdict(spec)
    encoder = sum(
        m.weight.numel() for layer in encoder_layers(model) for m in layer.modules() if hasattr(m, "in_features")
    )
    assert measure(model).encoder_bits == 32 * encoder
    assert measure(model).file_mib * 2**23 > 32 * encoder
