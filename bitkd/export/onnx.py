"""Quantized students as ONNX models: for onnxruntime and other tools, without bitkd."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitkd.files import checksum, follow_umask
from bitkd.models.marks import is_packed
from bitkd.models.onnx_files import FORMAT, LOGITS, check_installed
from bitkd.models.packed import pack_student
from bitkd.pretrained.files import ONNX_FILE, ONNX_RECORD
from bitkd.pretrained.tokenizer import save_tokenizer
from bitkd.quant.layout import input_limits


@torch.no_grad()
def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path | str) -> None:
    """Write a folder that onnxruntime reads without bitkd: model.onnx, config.json and the tokenizer's files.

    The graph's inputs are input_ids, attention_mask and, if the model tells kinds of sentences apart, token_type_ids: int64
    of shape (batch, length). Its output is logits, FP32 of shape (batch, labels).
    model: a classifier; a quantized student, which is left unchanged, or a packed one.
    The same weights give the same bytes. Raises InputError if the model is no classifier, cannot be packed, or is of a family
    that has no graph; or if the package onnx is not installed.
    """
    check_installed("onnx")
    packed = model if is_packed(model.config) else pack_student(model)
    content = _convert(packed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ONNX_FILE
    file.write_bytes(content)
    follow_umask(file)
    _write_config(packed, folder, checksum(file))
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def _convert(model: PreTrainedModel) -> bytes:
    """The content of model.onnx."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    from bitkd.export.families import classifier_logits, inputs_of
    from bitkd.export.graph import Graph

    graph = Graph()
    graph.result(classifier_logits(graph, model), LOGITS)
    inputs = [make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs_of(model)]
    labels = len(model.config.id2label or {})
    logits = make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", labels])
    content: bytes = graph.model(type(model).__name__, inputs, [logits]).SerializeToString(deterministic=True)
    return content


def _write_config(model: PreTrainedModel, folder: Path, file_checksum: str) -> None:
    """The stock configuration, with the record of the student and of the graph."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)  # there are no weights that `from_pretrained` reads
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    file = folder / "config.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    content[ONNX_RECORD] = {"format": FORMAT, "checksum": file_checksum, "positions": input_limits(model).positions}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
