"""Whether an architecture can go through a pipeline, found by trying it on a small random copy."""

import copy
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.artifact import load_student, save_student
from bitkd.models.attention import check_score_attention, use_score_attention
from bitkd.models.encoder import encoder_layers, keep_layers, read_spec, set_ffn_neurons, set_hidden_size
from bitkd.models.importance import estimate_importance
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import Architecture, ShapeSpec
from bitkd.models.student import build_student, check_heads
from bitkd.quant.layout import InputLimits, input_limits
from bitkd.quant.spec import QuantSpec
from bitkd.quant.table import ACTIVATIONS, WEIGHTS, is_splittable

_HEADS = 2
_VOCABULARY = 64
_LENGTH = 16
_LONGEST = 512
_TOLERANCE = 1e-4
"""Of logits and probabilities, which are near 1."""


_tried: dict[str, Architecture] = {}
"""Configuration -> what this process found."""


def read_limits(config: PretrainedConfig) -> InputLimits:
    """What a model of this configuration can read. Raises InputError if transformers cannot build it."""
    return input_limits(_build(AutoModel, config, "meta"))


def try_architecture(config: PretrainedConfig) -> Architecture:
    """What a classifier of this configuration can be made into.

    Its structure is checked at full size, without weights. A small random copy with two layers is then taken through what
    pipelines do: scores are captured, layers, heads and neurons are chosen, every width of `bitkd.quant.table` is applied,
    2-bit layers are split, and the student is saved and loaded again.
    Raises InputError if it cannot be distilled and quantized at all.
    """
    key = config.to_json_string()
    if key in _tried:
        return _tried[key]
    family = f"a {config.model_type} model"
    empty = _build(AutoModelForSequenceClassification, config, "meta")
    check_score_attention(empty)
    check_heads(empty)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            found = _try(_shrink(config), family)
        except InputError:
            raise
        except Exception as error:  # foreign code may raise anything, and each means that the pipeline would fail
            raise InputError(
                f"{family} cannot go through the pipeline: a small copy fails with {_describe(error)}; use an encoder such as "
                "BERT, RoBERTa or DistilBERT"
            ) from error
    _tried[key] = found
    return found


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _build(auto: type, config: PretrainedConfig, device: str) -> PreTrainedModel:
    """A random model in eval mode; on the device "meta", without weights."""
    config = copy.deepcopy(config)
    try:
        with torch.device(device):
            model: PreTrainedModel = auto.from_config(  # type: ignore[attr-defined]
                config, attn_implementation="eager", dtype=torch.float32
            )
    except Exception as error:  # each family checks its configuration in its own way
        raise InputError(
            f"a {config.model_type} model cannot be built from its config.json as a "
            f"{'classifier' if auto is AutoModelForSequenceClassification else 'bare encoder'}: {_describe(error)}; use an "
            "encoder such as BERT"
        ) from error
    return model.eval()


def _shrink(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a model with two layers, two heads of the same size, and few words."""
    small = copy.deepcopy(config)
    spec = read_spec(config)
    keep_layers(small, list(range(min(2, config.num_hidden_layers))))
    heads = min(_HEADS, spec.root_heads)
    small.num_attention_heads = heads
    set_hidden_size(small, heads * spec.head_size)
    set_ffn_neurons(small, 8 * heads)
    small.vocab_size = _VOCABULARY
    # RoBERTa and its like number positions from this one on.
    small.pad_token_id = config.pad_token_id if (config.pad_token_id or 0) < _VOCABULARY - 1 else 0
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        setattr(small, name, None)
    small.initializer_range = 0.2
    return small


def _try(config: PretrainedConfig, family: str) -> Architecture:
    model = _build(AutoModelForSequenceClassification, config, "cpu")
    limits = input_limits(model)
    batch = _rows(config, min(_LENGTH, limits.positions), limits)
    with torch.no_grad():
        stock = model(**batch, output_attentions=True)
        use_score_attention(model)
        output = model(**batch, output_attentions=True, output_hidden_states=True)
        model(**_rows(config, min(_LONGEST, limits.positions), limits))
    layers = len(encoder_layers(model))
    _check_scores(stock.attentions, output.attentions, batch["attention_mask"].bool(), layers, family)
    if not _equal(output.logits, stock.logits):
        raise InputError(f"{family} gives other logits with bitkd's attention function; use an encoder such as BERT")
    if len(output.hidden_states) != layers + 1:
        raise InputError(
            f"{family} gives {len(output.hidden_states)} hidden states for {layers} layers, not {layers + 1}; use an encoder "
            "such as BERT"
        )

    full = build_student(model, ShapeSpec()).eval()
    _expect_same(full, batch, output.logits, f"{family}: a copy of all its layers")
    build_student(model, ShapeSpec(layers=[layers - 1]))(**batch)
    for bits in [bits for bits, row in WEIGHTS.items() if not row.words_only]:
        spec = QuantSpec(weight_bits=bits, activation_bits=max(ACTIVATIONS), attention_activations=True)
        student = prepare(copy.deepcopy(full), spec)
        student(**batch).logits.sum().backward()
        if is_splittable(bits):
            split_ternary_(student)
        _reload(student, batch, family)
    return Architecture(getattr(model.base_model, "pooler", None) is not None, _narrowing_problem(model, batch))


def _narrowing_problem(model: PreTrainedModel, batch: dict[str, Tensor]) -> str | None:
    """Why heads and neurons cannot be left out; None if they can."""
    labels = torch.zeros(
        len(batch["input_ids"]), dtype=torch.long if len(model.config.id2label or {}) > 1 else torch.float
    )
    try:
        importance = estimate_importance(model, [batch | {"labels": labels}])
        build_student(model, ShapeSpec(width=1 / read_spec(model).heads), importance)(**batch)
    except Exception as error:  # foreign code may raise anything
        return _describe(error)
    return None


def _rows(config: PretrainedConfig, length: int, limits: InputLimits) -> dict[str, Tensor]:
    """Two rows of random tokens; the second one is half padding."""
    tokens = torch.randint(1 + (config.pad_token_id or 0), config.vocab_size, (2, length))
    mask = torch.ones_like(tokens)
    mask[1, (length + 1) // 2 :] = 0
    batch = {"input_ids": tokens, "attention_mask": mask}
    if limits.token_types > 1:
        batch["token_type_ids"] = torch.ones_like(tokens)
    return batch


def _check_scores(
    probabilities: Sequence[Tensor], scores: Sequence[Tensor], mask: Tensor, layers: int, family: str
) -> None:
    """Check that the softmax of the scores is the stock model's attention."""
    found = len(scores) == len(probabilities) == layers and all(
        score.shape == probability.shape
        and _equal(torch.where(probability > 0, score, -torch.inf).softmax(-1)[real], probability[real])
        for score, probability in zip(scores, probabilities)
        for real in [mask[:, None, :].expand(probability.shape[:3])]
    )
    if not found:
        raise InputError(
            f"{family} does not hand out the pre-softmax attention scores of each of its {layers} layers, which distillation "
            "compares; use an encoder such as BERT"
        )


@torch.no_grad()
def _reload(student: PreTrainedModel, batch: dict[str, Tensor], family: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_student(student, folder)
        loaded = load_student(folder)
    _expect_same(loaded, batch, student.eval()(**batch).logits, f"{family}: a student that was saved and loaded again")


@torch.no_grad()
def _expect_same(model: PreTrainedModel, batch: dict[str, Tensor], logits: Tensor, what: str) -> None:
    if not _equal(model(**batch).logits, logits):
        raise InputError(f"{what} gives other logits; use an encoder such as BERT")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
