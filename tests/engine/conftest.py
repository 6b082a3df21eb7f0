"""What the tests of the engine share: small packed models, and the compiled library."""

import copy

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from bitkd.engine.build import library
from bitkd.models.attention import ATTENTION
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.quant.modules import SplitLinear
from bitkd.quant.packed import pack_layers
from bitkd.quant.spec import QuantSpec

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 42,
    "num_labels": 3,
}
ODD = SIZES | {"hidden_size": 51, "num_attention_heads": 3, "intermediate_size": 77}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES | {"type_vocab_size": 1},
    "XLMRoberta": SIZES | {"type_vocab_size": 1},
    "Camembert": SIZES | {"type_vocab_size": 1},
    "Electra": SIZES | {"embedding_size": 16},
    "DistilBert": {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 72, "num_labels": 3},
}
SPECS = {
    "W1": QuantSpec(weight_bits=1, activation_bits=8),
    "W2": QuantSpec(weight_bits=2, activation_bits=8),
    "W1 per row": QuantSpec(weight_bits=1, activation_bits=8, per_row=True),
    "W2 per row": QuantSpec(weight_bits=2, activation_bits=8, per_row=True),
    "W1, attention at 8 bits": QuantSpec(weight_bits=1, activation_bits=8, attention_activations=True),
    "four levels": QuantSpec(weight_bits=2, activation_bits=8, levels=4),
    "row x column": QuantSpec(weight_bits=1, activation_bits=8, per_row=True, column_scales=True),
    "row x column, four levels": QuantSpec(
        weight_bits=2, activation_bits=8, levels=4, per_row=True, column_scales=True, attention_activations=True
    ),
    "split, row x column": QuantSpec(weight_bits=2, activation_bits=8, per_row=True, column_scales=True),
    "split": QuantSpec(weight_bits=2, activation_bits=8),
    "split, unequal": QuantSpec(weight_bits=2, activation_bits=8, per_row=True, attention_activations=True),
}


def make_student(family="Bert", spec="W1", **sizes):
    """A quantized classifier with random weights.

    spec: a key of SPECS; `split` has halves of equal scales, `split, unequal` of different ones.
    """
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | sizes)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
    with torch.no_grad():  # the stock initialization is so small that nothing differs
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prepare(model, SPECS[spec])
    if spec.startswith("split"):
        split_ternary_(model)
    if spec.endswith("unequal"):
        with torch.no_grad():
            for pair in (module for module in model.modules() if isinstance(module, SplitLinear)):
                pair.second.weight.mul_(1.5)
    return model.eval()


def make_packed(family="Bert", spec="W1", **sizes):
    """A student and its packed copy."""
    student = make_student(family, spec, **sizes)
    packed = copy.deepcopy(student)
    pack_layers(packed)
    return student, packed


def make_rows(lengths=(17, 9, 1, 12), seed=1):
    """A padded batch with rows of these lengths."""
    torch.manual_seed(seed)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in zip(mask, lengths):
        row[:length] = 1
    return {"input_ids": torch.randint(5, 60, mask.shape).where(mask.bool(), 1), "attention_mask": mask}


@pytest.fixture(scope="session")
def engine():
    """The compiled engine. It stays in pytest's cache folder, so that processes and runs share it."""
    found = library()
    if found is None:
        pytest.skip("there is no engine on this machine: no compiler, or another CPU")
    return found
