"""Students in ONNX: what onnxruntime computes is what the student computes."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, ErnieConfig

from bitkd.errors import InputError
from bitkd.export.onnx import export_onnx
from bitkd.files import checksum
from bitkd.models.artifact import permute_labels
from bitkd.models.calibration import calibrate
from bitkd.models.onnx import load_onnx
from bitkd.models.packed import int8_parts, pack_student
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.pretrained.load import read_model_config
from bitkd.quant.layout import input_limits
from bitkd.quant.modules import QuantEmbedding, QuantLinear, SplitEmbedding, SplitLinear
from bitkd.quant.packed import PackedEmbedding, PackedLinear
from bitkd.quant.packing import TRITS, TWO_BITS
from bitkd.quant.spec import QuantSpec
from tests.models.conftest import SHAPE, classifier, importance_of
from tests.models.test_families import WORKING, config_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

W1A8 = QuantSpec(weight_bits=1, activation_bits=8)
W2A8 = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True, pooler=True)
FP32_INPUTS = QuantSpec(weight_bits=1, embedding_bits=2)


def rows(count, length, padding_id=0, seed=1):
    """Rows of tokens; every second one ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, length // 2 + 1 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, padding_id), "attention_mask": mask}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def exported(model, folder):
    export_onnx(model, None, folder)
    return load_onnx(folder)


def halve_second(model):
    """Give the halves of pairs unequal scales."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("second.weight"):
                parameter.mul_(0.5)
    return model


@pytest.mark.parametrize("name", WORKING)
def test_a_graph_of_every_family_gives_the_students_logits(name, tmp_path):
    """Inputs of products stay FP32 here: a rounding that differs in the last bit cannot change a code then."""
    model = classifier(config_of(name, WORKING[name]))
    students = [copy.deepcopy(model)]
    if name not in ("DebertaV2", "ModernBert"):
        students.append(build_student(model, ShapeSpec(width=0.5, layers=[0, 3]), importance_of(model)).eval())
    for student in students:
        packed = pack_student(prepare(student, FP32_INPUTS), int8=int8_parts(student))
        graph = exported(packed, tmp_path)
        for count, length in ((2, 24), (5, 33), (1, 2)):
            inputs = rows(count, length, packed.config.pad_token_id or 0)
            torch.testing.assert_close(logits(graph, inputs), logits(packed, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Bert", {"type_vocab_size": 1, "hidden_act": "gelu_new"}),
        ("Bert", {"hidden_act": "silu"}),
        ("Roberta", {"type_vocab_size": 2, "hidden_act": "relu"}),
        ("DebertaV2", {"share_att_key": False, "pos_att_type": ["c2p"], "type_vocab_size": 2}),
        ("DebertaV2", {"share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"}),
        ("DebertaV2", {"relative_attention": False, "pos_att_type": [], "position_biased_input": True}),
        ("ModernBert", {"classifier_pooling": "mean", "norm_bias": True, "mlp_bias": True, "attention_bias": True}),
    ],
)
def test_variants_of_a_family_have_graphs_of_their_own(name, settings, tmp_path):
    packed = pack_student(prepare(classifier(config_of(name, WORKING[name] | settings)), FP32_INPUTS))
    inputs = rows(4, 20, packed.config.pad_token_id or 0)
    if packed.config.to_dict().get("type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(20) > 8).long().expand(4, -1)
    torch.testing.assert_close(logits(exported(packed, tmp_path), inputs), logits(packed, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WORKING)
def test_quantized_inputs_and_attention_have_a_graph_in_every_family(name, tmp_path):
    model = classifier(config_of(name, WORKING[name]))
    spec = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True, per_row=True)
    packed = pack_student(prepare(model, spec))
    inputs = rows(8, 12, packed.config.pad_token_id or 0)
    # A last bit that differs may change a code, whose effect is small beside the logits.
    difference = (logits(exported(packed, tmp_path), inputs) - logits(packed, inputs)).abs()
    assert difference.max() < 0.05 * logits(packed, inputs).abs().max()


@pytest.mark.parametrize("form", ["W1A8", "W2A8", "split", "unequal"])
def test_logits_are_the_simulations_but_for_rare_codes(form, tmp_path):
    student = prepare(classifier(BertConfig(**SHAPE)), W1A8 if form == "W1A8" else W2A8)
    if form in ("split", "unequal"):
        split_ternary_(student)
    student.eval()
    packed = pack_student(halve_second(student) if form == "unequal" else student)
    graph, inputs = exported(packed, tmp_path), rows(200, 9)
    found, expected = logits(graph, inputs), logits(packed, inputs)
    difference = (found - expected).abs().amax(1)
    assert difference.median() <= 1e-6
    first, second = expected.topk(2).values.unbind(1)
    certain = first - second > 2 * difference.max()
    assert certain.float().mean() > 0.9
    assert torch.equal(found.argmax(1)[certain], expected.argmax(1)[certain])
    one_by_one = torch.cat([logits(graph, {name: x[i : i + 1] for name, x in inputs.items()}) for i in range(40)])
    assert (one_by_one - found[:40]).abs().amax(1).median() <= 1e-6


def product_of(module, x):
    """What onnxruntime makes of a layer.  x: its input, a batch of rows."""
    from onnx import TensorProto, helper

    from bitkd.export.graph import Graph

    graph = Graph()
    is_table = isinstance(module, PackedEmbedding)
    graph.result(graph.embedding(module, "x") if is_table else graph.linear(module, "x"), "y")
    kind = TensorProto.INT64 if is_table else TensorProto.FLOAT
    given = helper.make_tensor_value_info("x", kind, ["rows", "length", *([] if is_table else [x.shape[-1]])])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "length", None])
    model = graph.model("layer", [given], [result])
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("form", ["1 bit", "2 bits", "5 in a byte", "4 levels", "equal halves", "unequal halves"])
def test_equal_inputs_give_equal_products_in_every_bit(form, per_row, bias):
    torch.manual_seed(0)
    bits, levels = 1 if "halves" in form or form == "1 bit" else 2, 4 if form == "4 levels" else 3
    settings = {"weight_bits": bits, "levels": levels, "activation_bits": 8, "per_row": per_row}
    layers = [QuantLinear(37, 23, bias, **settings) for _ in range(2 if "halves" in form else 1)]
    for layer in layers:
        layer.weight[4] = 0
    if form == "equal halves":
        layers[1].weight.copy_(layers[0].weight[:, torch.randperm(37)])
        layers[0].weight.copy_(layers[0].weight.abs().mean(1 if per_row else (0, 1), True) * layers[0].weight.sign())
        layers[1].weight.copy_(layers[0].weight.abs() * layers[1].weight.sign())
    layer = layers[0] if len(layers) == 1 else SplitLinear(*layers)
    packed = PackedLinear.from_quantized(layer.eval(), TRITS if form == "5 in a byte" else TWO_BITS)
    x = torch.randn(3, 5, 37) * 10 ** torch.arange(-2, 3)[:, None]
    x[0, 0] = 0
    assert torch.equal(product_of(packed, x), packed(x))


@torch.no_grad()
@pytest.mark.parametrize("split", [False, True])
def test_scales_of_columns_are_one_product_more(split):
    torch.manual_seed(0)
    layers = [QuantLinear(37, 23, weight_bits=1, activation_bits=8, per_row=True, column_scales=True) for _ in range(2)]
    layer = SplitLinear(*layers, column_scales=True) if split else layers[0]
    packed = PackedLinear.from_quantized(layer.eval())
    assert packed.column_scale.shape == (37,)
    x = torch.randn(3, 5, 37)
    assert torch.equal(product_of(packed, x), packed(x))


@torch.no_grad()
@pytest.mark.parametrize("form", ["1 bit", "2 bits", "5 in a byte", "4 levels", "4 bits", "8 bits", "halves"])
def test_rows_of_packed_tables_are_equal_in_every_bit(form):
    torch.manual_seed(0)
    bits = {"1 bit": 1, "halves": 1, "4 bits": 4, "8 bits": 8}.get(form, 2)
    tables = [QuantEmbedding(11, 21, weight_bits=bits, levels=4 if form == "4 levels" else 3) for _ in range(2)]
    table = SplitEmbedding(*tables) if form == "halves" else tables[0]
    packed = PackedEmbedding.from_quantized(table.eval(), TRITS if form == "5 in a byte" else TWO_BITS)
    numbers = torch.arange(11)[None]
    assert torch.equal(product_of(packed, numbers), packed(numbers))


def test_codes_stay_packed_in_the_file_and_operators_are_standard(tmp_path):
    config = BertConfig(**SHAPE | {"vocab_size": 4000, "hidden_size": 128, "intermediate_size": 512})
    packed = pack_student(prepare(classifier(config), W1A8))
    export_onnx(packed, None, tmp_path)
    low = sum(m.packed.numel() + 4 * m.scale.numel() for m in packed.modules() if hasattr(m, "packed"))
    rest = 2 * sum(p.numel() for p in packed.parameters())
    assert (tmp_path / "model.onnx").stat().st_size < 1.05 * (low + rest) + 80_000
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [item.domain for item in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}


def test_the_same_student_gives_the_same_bytes(tmp_path, tiny_tokenizer):
    student = prepare(classifier(), W1A8)
    before = copy.deepcopy(student.state_dict())
    export_onnx(student, tiny_tokenizer, tmp_path / "a")
    export_onnx(pack_student(student), tiny_tokenizer, tmp_path / "b")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert {"model.onnx", "config.json", "tokenizer.json"} <= set(names)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_it_runs_where_bitkd_and_torch_are_not(tmp_path):
    packed = pack_student(prepare(classifier(BertConfig(**SHAPE)), FP32_INPUTS))
    export_onnx(packed, None, tmp_path)
    inputs = rows(3, 9) | {"token_type_ids": torch.zeros(3, 9, dtype=torch.long)}
    np.savez(tmp_path / "inputs.npz", **{name: x.numpy() for name, x in inputs.items()})
    code = (
        "import sys, numpy, onnxruntime\n"
        "inputs = dict(numpy.load('inputs.npz'))\n"
        "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
        "numpy.save('logits.npy', session.run(['logits'], inputs)[0])\n"
        "assert not {'torch', 'bitkd', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    torch.testing.assert_close(found, logits(packed, inputs), rtol=1e-5, atol=1e-5)


def test_outputs_come_in_the_order_of_the_labels_by_name(tmp_path):
    student = prepare(classifier(BertConfig(**SHAPE, id2label={0: "x", 1: "y", 2: "z"})), W1A8)
    graph = exported(student, tmp_path)
    before, inputs = logits(graph, rows(4, 9)), rows(4, 9)
    other = copy.deepcopy(graph)
    permute_labels(other, ["z", "x", "y"])
    assert torch.equal(logits(other, inputs), before[:, [2, 0, 1]])
    assert torch.equal(logits(graph, inputs), before)
    assert other.config.id2label[0] == "z"


def test_logits_are_on_the_device_that_the_model_was_moved_to(tmp_path):
    graph = exported(prepare(classifier(), W1A8), tmp_path)
    assert logits(graph.to("meta"), rows(2, 9)).device.type == "meta"


def test_the_configuration_keeps_its_rows_and_the_loaded_model_its_limit(tmp_path):
    config = config_of("Roberta", WORKING["Roberta"])
    graph = exported(prepare(classifier(config), W1A8), tmp_path)
    assert input_limits(graph).positions == input_limits(classifier(config)).positions < config.max_position_embeddings
    assert read_model_config(tmp_path).max_position_embeddings == config.max_position_embeddings


def ernie():
    model = AutoModelForSequenceClassification.from_config(ErnieConfig(**SHAPE), attn_implementation="eager")
    return prepare(model.eval(), W1A8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prepare(BertModel(BertConfig(**SHAPE)), W1A8), "BertModel has no ONNX form here; classifiers of"),
        (ernie, "ErnieForSequenceClassification has no ONNX form here"),
        (lambda: classifier(), "no quantized weights"),
        (lambda: prepare(classifier(BertConfig(**SHAPE, hidden_act="mish")), W1A8), "activation function mish"),
    ],
)
def test_what_has_no_graph_is_refused_before_anything_is_written(make, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_onnx(make(), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change_record(**changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content["bitkd_onnx"] |= changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


def cut(folder):
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def replace_by_text(folder):
    (folder / "model.onnx").write_text("no graph")
    change_record(checksum=checksum(folder / "model.onnx"))(folder)


def name_more_labels(folder):
    content = json.loads((folder / "config.json").read_text())
    content["id2label"] = {str(i): str(i) for i in range(7)}
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.onnx is damaged: its SHA-256 is"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "model.onnx").unlink(), "has no model.onnx; export the student again"),
        (replace_by_text, "cannot be loaded by onnxruntime"),
        (name_more_labels, "does not fit its config.json, which has 7 labels"),
        (change_record(format=2), "has format 2, this version of bitkd reads 1; install a newer bitkd"),
        (change_record(checksum=None), "does not tell the version and the checksum"),
    ],
)
def test_damaged_folders_are_refused(damage, message, tmp_path):
    export_onnx(prepare(classifier(), W1A8), None, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_onnx(tmp_path)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("weights", [1, 2])
def test_learned_steps_and_shifts_have_a_graph(bits, weights, tmp_path):
    spec = QuantSpec(weight_bits=weights, activation_bits=bits, attention_activations=True)
    model = prepare(classifier(BertConfig(**SHAPE, hidden_act="relu")), spec)
    calibrate(model, [rows(4, 12)])
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "shift", None) is not None:
                module.shift.add_(0.1 * torch.randn_like(module.shift))
    packed = pack_student(model)
    graph = exported(packed, tmp_path)
    found, expected = (torch.cat([logits(m, rows(1, 9, seed=seed)) for seed in range(40)]) for m in (graph, packed))
    assert (found - expected).abs().amax(1).median() <= 1e-5  # a last bit that differs may change a code


def test_an_unknown_quantizer_of_inputs_is_refused():
    from bitkd.export.graph import Graph

    with pytest.raises(InputError, match="activations quantized by Identity have no ONNX form"):
        Graph().token_codes(nn.Identity(), "x")
