"""Families of encoders: what works gives scores, is made smaller, quantized, split and loaded again; the rest is refused."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification

from bitkd.config.load import load_config
from bitkd.data.hub import load_tokenizer
from bitkd.data.tokenized import Batches, Padding
from bitkd.errors import InputError
from bitkd.models.artifact import load_encoder, load_student, new_classifier, save_student
from bitkd.models.attention import use_score_attention
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.importance import estimate_importance
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.probe import read_limits, try_architecture
from bitkd.models.projections import ProjectionRecorder
from bitkd.models.spec import Architecture, ShapeSpec
from bitkd.models.student import add_head, build_student
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import run
from bitkd.quant.spec import QuantSpec

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.3}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "type_vocab_size": 0,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
WORKING = {
    "Bert": SIZES,
    "Roberta": SIZES | {"type_vocab_size": 1, "max_position_embeddings": 42},
    "XLMRoberta": SIZES | {"type_vocab_size": 1, "max_position_embeddings": 42},
    "Electra": SIZES | {"embedding_size": 16},
    "DistilBert": DISTIL,
    "MPNet": SIZES,
    "DebertaV2": SIZES | DEBERTA,
    "ModernBert": SIZES | SPECIAL | {"local_attention": 8},
}
OWN_LAYERS, OWN_ATTENTION = "does not keep its layers as BERT", "computes attention by itself"
REFUSED = {
    "Albert": ({"embedding_size": 16}, OWN_LAYERS),
    "RemBert": (SPECIAL, OWN_ATTENTION),
    "RoFormer": ({}, OWN_ATTENTION),
    "MegatronBert": ({}, OWN_ATTENTION),
    "BigBird": (SPECIAL | {"attention_type": "original_full"}, OWN_ATTENTION),
    "ConvBert": ({}, OWN_ATTENTION),
    "MobileBert": ({"embedding_size": 16, "true_hidden_size": 16}, "queries of 16 features, not 4 heads of 8"),
}
IDS = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 16:] = 0
ROWS = {"input_ids": IDS, "attention_mask": MASK}
W2A8 = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True)

families = pytest.mark.parametrize("name", WORKING)


def config_of(name, settings):
    return getattr(transformers, f"{name}Config")(**settings)


def make(name):
    torch.manual_seed(0)
    config = config_of(name, WORKING[name])
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


@families
@torch.no_grad()
def test_a_random_student_has_sizes_of_its_own_and_is_a_stock_model(name, tmp_path):
    shape = ShapeSpec(layers=[0, 2], init="random", hidden_size=60, heads=6, intermediate_size=50)
    student = build_student(make(name), shape).eval()
    spec = read_spec(student)
    assert (spec.heads, spec.head_size, spec.neurons) == (6, 10, 50)
    save_student(student, tmp_path)
    stock, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(stock.eval()(**ROWS).logits, student(**ROWS).logits)
    if name == "ModernBert":
        with pytest.raises(
            InputError, match="heads of an even size, as rotary positions need; use one of 1, 3, 13, 39"
        ):
            build_student(make(name), replace(shape, hidden_size=78))


@families
@torch.no_grad()
def test_the_softmax_of_the_scores_is_the_stock_models_attention(name):
    model = make(name)
    stock = model(**ROWS, output_attentions=True)
    use_score_attention(model)
    output = model(**ROWS, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, stock.logits)
    assert len(output.hidden_states) == 5
    real = MASK.bool()[:, None, :].expand(-1, 4, -1)
    for scores, expected in zip(output.attentions, stock.attentions, strict=True):
        softmax = scores.masked_fill(expected == 0, -torch.inf).softmax(-1)
        torch.testing.assert_close(softmax[real], expected[real])
        assert not torch.allclose(scores[real].sum(-1), torch.ones(()), atol=0.1)


@families
@torch.no_grad()
def test_scores_are_scaled_products_of_queries_and_keys(name):
    model = make(name)
    use_score_attention(model)
    recorder = ProjectionRecorder(model)
    scores = model(**ROWS, output_attentions=True).attentions
    if name == "ModernBert":
        # Rotation leaves a query's product with the key of its own position as it is.
        scores = [torch.diagonal(layer, dim1=2, dim2=3) for layer in scores]
    for layer, (query, key, value) in zip(scores, recorder.projections, strict=True):
        query, key = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (query, key))
        products = query @ key.transpose(2, 3) / 8**0.5
        if name == "ModernBert":
            products = torch.diagonal(products, dim1=2, dim2=3)
        if name == "DebertaV2":
            continue  # its position biases need the queries and keys of the relative positions: see the test above
        if name == "MPNet":
            products = products + model.mpnet.encoder.compute_position_bias(IDS.unsqueeze(-1))
        torch.testing.assert_close(layer, products)
        assert value.shape == (2, 24, 32)


@families
def test_a_narrow_student_of_some_layers_is_quantized_split_and_loaded(name, tmp_path):
    teacher = make(name)
    importance = estimate_importance(teacher, [ROWS | {"labels": torch.tensor([0, 1])}])
    student = prepare(build_student(teacher, ShapeSpec(layers=[1, 3], width=0.5), importance), W2A8).eval()
    with torch.no_grad():
        ternary = student(**ROWS).logits
        split_ternary_(student)
        torch.testing.assert_close(student(**ROWS).logits, ternary)
        save_student(student, tmp_path)
        assert torch.equal(load_student(tmp_path)(**ROWS).logits, student(**ROWS).logits)
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(stock(**ROWS).logits, student(**ROWS).logits)


@families
@torch.no_grad()
def test_a_student_with_all_layers_heads_and_neurons_is_its_teacher(name):
    teacher = make(name)
    use_score_attention(teacher)
    logits = teacher(**ROWS).logits
    assert torch.equal(build_student(teacher, ShapeSpec()).eval()(**ROWS).logits, logits)
    scores = build_student(teacher, ShapeSpec(layers=[0, 1, 2])).eval()(**ROWS, output_attentions=True).attentions
    for mine, theirs in zip(scores, teacher(**ROWS, output_attentions=True).attentions):
        assert torch.equal(mine, theirs)
    headed = add_head(build_student(teacher.base_model, ShapeSpec()), teacher).eval()
    assert torch.equal(headed(**ROWS).logits, logits)
    assert read_spec(headed).trained_head


def test_the_kept_heads_of_a_narrow_mpnet_keep_their_position_biases():
    teacher = make("MPNet")
    use_score_attention(teacher)
    importance = estimate_importance(teacher, [ROWS | {"labels": torch.tensor([0, 1])}])
    student = build_student(teacher, ShapeSpec(layers=[0], width=0.5), importance).eval()
    kept = read_spec(student).kept_heads[0]
    assert torch.equal(
        student(**ROWS, output_attentions=True).attentions[0],
        teacher(**ROWS, output_attentions=True).attentions[0][:, kept],
    )


@torch.no_grad()
def test_scores_beyond_a_local_window_are_zero():
    model = make("ModernBert")
    use_score_attention(model)
    scores = model(**ROWS, output_attentions=True).attentions
    distance = (torch.arange(24)[:, None] - torch.arange(24)).abs()
    assert model.config.layer_types[1] == "sliding_attention"
    assert (scores[1][:, :, distance > 4] == 0).all()
    assert (scores[1][:, :, distance <= 4] != 0).all()
    assert (scores[0] != 0).all()


def test_a_head_of_another_family_starts_at_random():
    headed = add_head(make("DistilBert").base_model, make("Bert"))
    assert not read_spec(headed).trained_head
    assert len(encoder_layers(headed)) == 4


@families
def test_what_works_passes_the_check_at_plan(name):
    found = try_architecture(config_of(name, WORKING[name]))
    assert found == Architecture(pooler=name == "Bert", narrowing=None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_at_plan(name):
    more, message = REFUSED[name]
    config = config_of(name, SIZES | more)
    with pytest.raises(InputError, match=message):
        try_architecture(config)


def test_a_model_that_is_no_encoder_is_refused():
    with pytest.raises(InputError, match=r"a vit model cannot be built from its .* as a classifier"):
        try_architecture(transformers.ViTConfig(num_hidden_layers=1))


@pytest.mark.parametrize(
    ("name", "positions", "token_types"),
    [("Bert", 512, 2), ("Roberta", 40, 1), ("MPNet", 510, 0), ("DistilBert", 512, 0), ("ModernBert", 8192, 0)],
)
def test_positions_and_token_types_are_those_of_the_tables(name, positions, token_types):
    limits = read_limits(config_of(name, WORKING[name]))
    assert (limits.positions, limits.token_types) == (positions, token_types)


@pytest.fixture
def pretrained(tmp_path, tiny_tokenizer):
    """Makes the folder of a tiny model with a BERT's tokenizer."""

    def save(name, **more):
        settings = WORKING[name] | {"vocab_size": len(tiny_tokenizer), "pad_token_id": 0} | more
        torch.manual_seed(0)
        AutoModel.from_config(config_of(name, settings)).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", ["Roberta", "DistilBert", "ModernBert"])
def test_a_tokenizer_makes_no_token_types_for_a_model_that_has_none(name, pretrained, tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(pretrained(name))
    assert list(tokenizer("a dog", "the cat")) == ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "again")
    assert "token_type_ids" not in transformers.AutoTokenizer.from_pretrained(tmp_path / "again").model_input_names
    assert "token_type_ids" in load_tokenizer(pretrained("Bert"))("a dog", "the cat")


def test_a_teacher_reads_token_types_where_its_student_does_not(pretrained, settings, tmp_path):
    student, teacher = pretrained("DistilBert"), pretrained("Bert")
    torch.manual_seed(0)
    model = new_classifier(teacher, ["entailment", "not_entailment"]).eval()
    model.save_pretrained(teacher)
    overrides = settings(tmp_path / "runs", "multistage", f"model.pretrained={student}")
    sources = make_plan(load_config([*overrides, f"stages.teacher.checkpoint={teacher}"])).sources
    batch = Batches(sources.task_rows.train, Padding.of(sources.tokenizer))[range(4)]
    assert batch["token_type_ids"].any()
    assert "token_type_ids" in model_inputs(batch, model)
    assert "token_type_ids" not in model_inputs(batch, load_encoder(student))
    assert "token_type_ids" not in make_plan(load_config(overrides)).sources.tokenizer.model_input_names


def test_what_a_model_lacks_is_refused_where_the_run_needs_it(pretrained, settings, tmp_path, monkeypatch):
    overrides = settings(tmp_path / "runs", "singlestage", f"model.pretrained={pretrained('DistilBert')}")
    with pytest.raises(InputError, match=r"stages\.single_binary\.quant\.pooler=true: .* has no pooler to quantize"):
        make_plan(load_config([*overrides, "stages.single_binary.quant.pooler=true"]))
    monkeypatch.setattr("bitkd.models.probe.estimate_importance", lambda *_: 1 / 0)
    monkeypatch.setattr("bitkd.models.probe._tried", {})
    with pytest.raises(InputError, match=r"student\.width=0\.5: heads .* cannot be left out \(ZeroDivisionError"):
        make_plan(load_config([*overrides, "student.width=0.5"]))
    make_plan(load_config(overrides))


@pytest.mark.parametrize(
    ("name", "pipeline", "more"),
    [
        ("ModernBert", "multistage", ["student.layers=[1,3]"]),
        ("DistilBert", "singlestage", ["student.width=0.5"]),
        ("MPNet", "singlestage", ["student.layers=[1,3]"]),
        ("DebertaV2", "singlestage", ["student.layers=[1,3]", "student.width=0.5"]),
    ],
)
def test_a_pipeline_runs_to_its_end(name, pipeline, more, pretrained, settings, tmp_path, console):
    folder = pretrained(name)
    overrides = ["train.max_steps=2", "train.eval_every=2", f"model.pretrained={folder}", *more]
    result = run(load_config(settings(tmp_path / "runs", pipeline, *overrides)), console)
    assert result
