"""Classifiers in ONNX, run by onnxruntime on the CPU in place of a model of transformers."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from bitkd.errors import InputError
from bitkd.models.heads import CLASSES
from bitkd.models.onnx_files import EXPORT_AGAIN, LOGITS, check_onnx_files
from bitkd.pretrained.files import ONNX_FILE, ONNX_RECORD
from bitkd.pretrained.load import read_model_config


class OnnxClassifier(nn.Module):
    """A classifier whose logits onnxruntime computes on the CPU. It has what evaluation and prediction need of a PreTrainedModel.

    Inputs may be on any device; logits are on the device of the module.

    answers_by: its head.
    classifier: a Linear that hands the logits on, so that `bitkd.models.artifact.permute_labels` can change their order.
    """

    def __init__(self, session: "Session", config: PretrainedConfig) -> None:
        super().__init__()
        self.session = session
        self.config = config
        self.answers_by = CLASSES
        labels = len(config.id2label or {})
        self.classifier = nn.Linear(labels, labels)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.eye(labels))
            self.classifier.bias.zero_()
        self.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits, (batch, labels).  Every input: int64, (batch, length)."""
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        logits = self.session(given).to(self.classifier.weight.device)
        return SequenceClassifierOutput(logits=self.classifier(logits))


class Session:
    """A session of onnxruntime.  file: the ONNX model."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: warnings are about the graph, which no user wrote
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = {item.name: item.shape for item in self._session.get_outputs()}

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """FP32, (batch, labels).  inputs: those that the graph lacks are left out."""
        feeds = {name: np.ascontiguousarray(inputs[name].cpu().numpy(), np.int64) for name in self.inputs}
        return torch.from_numpy(self._session.run([LOGITS], feeds)[0])

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # nothing changes it, and onnxruntime cannot copy it


def load_onnx(folder: Path | str) -> OnnxClassifier:
    """The ONNX classifier in a folder of `bitkd.export.onnx.export_onnx`, in eval mode. The `max_position_embeddings` of its
    configuration are the tokens that it can read.

    It runs in as many threads as torch has now.
    Raises InputError if the folder is damaged or does not fit its config.json, or if onnxruntime is not installed.
    """
    folder = Path(folder)
    check_onnx_files(folder)
    config, file = read_model_config(folder), folder / ONNX_FILE
    try:
        session = Session(file)
    except Exception as error:  # onnxruntime has a type of its own for every cause
        raise InputError(
            f"{file} cannot be loaded by onnxruntime: {(str(error).splitlines() or [''])[0][:300]}"
        ) from error
    if positions := getattr(config, ONNX_RECORD).get("positions"):
        config.max_position_embeddings = positions
    labels = len(config.id2label or {})
    if session.outputs.get(LOGITS, ())[1:] != [labels]:
        raise InputError(
            f"{file} does not fit its config.json, which has {labels} labels: its outputs are {session.outputs}; {EXPORT_AGAIN}"
        )
    return OnnxClassifier(session, config).eval()
