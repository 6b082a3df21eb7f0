"""What `benchmark` measures: the given models, and stock ones of the same shape, each as a function of a batch."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from bitkd.models.artifact import is_artifact, load_student
from bitkd.models.heads import head_in
from bitkd.models.onnx import Session, load_onnx
from bitkd.models.onnx_files import LOGITS, is_onnx
from bitkd.models.packed import is_packed, load_packed
from bitkd.pretrained.load import load_pretrained, read_model_config

FLOAT = 1
"""onnx.TensorProto.FLOAT."""

Batch = dict[str, Tensor]
Call = Callable[[Batch], object]

LARGEST_TOKEN = 1000
"""Tokens of a batch are drawn below this."""


class AbsentError(Exception):
    """A contender that cannot run here; its text says why."""


@dataclass(frozen=True)
class Contender:
    """A model to be measured, described so that another process can open it too."""

    name: str
    """Shown in tables."""

    kind: str
    """A key of STOCK, or "given"."""

    folder: str
    """The model, or the one whose configuration a stock model has."""


STOCK = {
    "eager": "FP32 eager",
    "sdpa": "FP32 SDPA",
    "bf16_eager": "bf16 eager",
    "bf16": "bf16 SDPA",
    "bf16_compiled": "bf16 compiled, CUDA graph",
    "onnx_int8": "onnxruntime int8",
    "onnx_int8_fused": "onnxruntime int8, fused",
}
"""Stock models of Hugging Face, by how they are run. onnx_int8: quantized dynamically, per channel; fused: after
onnxruntime's optimizer for transformers."""

BASE = "eager"
"""What all ratios refer to."""


def stock(kind: str, folder: str) -> Contender:
    """A stock model of random weights with the configuration of a folder.  kind: a key of STOCK."""
    return Contender(STOCK[kind], kind, folder)


def describe(contender: Contender) -> str:
    """What a given folder holds: packed, artifact (simulation), ONNX or plain."""
    if is_onnx(contender.folder):
        return "ONNX"
    config = read_model_config(contender.folder)
    return "packed" if is_packed(config) else "artifact, simulated" if is_artifact(config) else "plain"


def batch_for(rows: int, length: int, vocabulary: int, device: str = "cpu") -> Batch:
    """Random tokens without padding, (rows, length).  vocabulary: tokens that every model knows."""
    generator = torch.Generator().manual_seed(0)
    largest = min(vocabulary, LARGEST_TOKEN)
    ids = torch.randint(min(5, largest - 1), largest, (rows, length), generator=generator)
    return {
        name: value.to(device) for name, value in {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.items()
    }


def open_contender(contender: Contender, device: str) -> Call:
    """A function of a batch on `device` that runs the model once, in as many threads as torch has now.

    Raises AbsentError if it cannot run here.
    """
    if contender.kind == "given":
        if not is_onnx(contender.folder):
            return _call(load_given(contender.folder).to(device))
        if device != "cpu":
            raise AbsentError("ONNX folders run on CPUs only")
        return _call(load_onnx(contender.folder))
    return open_stock(contender.kind, stock_config(contender.folder), device)


def load_given(folder: Path | str) -> Any:
    """The model in a folder, in eval mode, as a user loads it."""
    config = read_model_config(folder)
    if is_packed(config):
        return load_packed(folder)
    if is_artifact(config):
        return load_student(folder)
    return load_pretrained(head_in(config).auto_class, folder)[0].eval()


def stock_config(folder: Path | str) -> PretrainedConfig:
    """The configuration of a stock model like the one in a folder."""
    config = copy.deepcopy(read_model_config(folder))
    for name in ("bitkd", "quantization_config", "transformers_weights"):
        config.__dict__.pop(name, None)
    return config


def open_stock(kind: str, config: PretrainedConfig, device: str) -> Call:
    """A stock classifier of random weights.  kind: a key of STOCK. Raises AbsentError if it cannot run here."""
    if kind in ("onnx_int8", "onnx_int8_fused"):
        if device != "cpu":
            raise AbsentError("it runs on CPUs only")
        return _onnx_int8(config, fused=kind == "onnx_int8_fused")
    dtype = torch.float32
    if kind.startswith("bf16"):
        _check_bf16(device)
        dtype = torch.bfloat16
    if kind == "bf16_compiled" and device == "cpu":
        raise AbsentError("CUDA graphs need a GPU")
    attention = "eager" if kind.endswith("eager") else "sdpa"
    model = _random(config, attention)
    model = model.to(device, dtype)
    call = _call(model)
    if kind != "bf16_compiled":
        return call
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def run(batch: Batch) -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(**batch).logits

    return run


def _random(config: PretrainedConfig, attention: str) -> Any:
    try:
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
    except ValueError as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            raise AbsentError(f"transformers has no SDPA for {config.model_type} models") from error
        raise
    return model.eval()


def _call(model: Any) -> Call:
    return lambda batch: model(**batch)


def _check_bf16(device: str) -> None:
    from bitkd.processes.machine import has_bf16

    if not has_bf16(device):
        raise AbsentError("this processor has no bf16 instructions; emulated, it would be many times slower")


class _Logits(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _onnx_int8(config: PretrainedConfig, fused: bool) -> Call:
    try:
        import onnxruntime  # noqa: F401
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise AbsentError("onnxruntime and onnx are not installed; install bitkd[onnx]") from error
    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {0: "batch", 1: "length"}
    with tempfile.TemporaryDirectory() as name, _quiet():
        exported, quantized = Path(name, "model.onnx"), Path(name, "int8.onnx")
        try:
            with torch.no_grad():
                torch.onnx.export(
                    _Logits(_random(config, "eager")),
                    (ids, ids),
                    str(exported),
                    input_names=["input_ids", "attention_mask"],
                    output_names=[LOGITS],
                    dynamic_axes={"input_ids": axes, "attention_mask": axes},
                    dynamo=False,
                )
            if fused:
                from onnxruntime.transformers import optimizer

                optimizer.optimize_model(
                    str(exported), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
                ).save_model_to_file(str(exported))
            quantize_dynamic(
                str(exported),
                str(quantized),
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": FLOAT},  # fused nodes have no type that it could infer
            )
        except Exception as error:  # exporter and quantizer raise many types for a model that they do not know
            lines = str(error).splitlines() or [type(error).__name__]
            raise AbsentError(f"this model cannot be exported or quantized: {lines[0]}") from error
        return Session(quantized)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that exporters print."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
