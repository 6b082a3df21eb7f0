"""Teacher intervention: a stage's first steps run on the teacher's attention, which is withdrawn step by step."""

from typing import Any

import torch
from torch import Tensor, nn

from bitkd.models.attention import Mixed
from bitkd.models.layer_reader import Mixture
from bitkd.models.teacher_map import TeacherMap
from bitkd.stages.fit import SPANS, Place
from bitkd.stages.spec import LossSpec


class Intervention(nn.Module):
    """The weights of the teacher's tensors in the student's forward pass (arXiv:2302.11812).

    The authors' code puts the teacher's tensors in whole for 60 to 120 steps (output for a sixth of them, the heads' outputs
    for another, then the map) and goes on without in a second training. Here it is one training, and each weight falls
    linearly from 1 to 0, with the optimizer's steps only: a resumed stage finds the same weights, and all batches of an
    accumulated step have one. The code also cuts the gradient from queries and keys to earlier layers; here it stays, as in
    steps without the teacher.

    loss: its `intervention` is not None.
    """

    weights: Tensor
    """(places,) FP32, changed in place: compiled and recorded steps see the change. It is in no state dict."""

    def __init__(self, loss: LossSpec) -> None:
        super().__init__()
        assert loss.intervention is not None
        self._spans, self._share = SPANS[loss.intervention], loss.intervention_share
        self.register_buffer("weights", torch.ones(len(self._spans)), persistent=False)

    def replaces(self, place: Place) -> bool:
        return place in self._spans

    def set_step(self, step: int, total_steps: int) -> None:
        """Set the weights of an optimizer step, which are counted from 0.  total_steps: of the whole stage."""
        time = step / (self._share * total_steps)
        for position, (begin, end) in enumerate(self._spans.values()):
            self.weights[position].fill_(min(1.0, max(0.0, (end - time) / (end - begin))))

    def mixture(self, layers: TeacherMap, select_heads: Any, teacher: Any) -> Mixture:
        """What a step mixes into the student.

        layers: the teacher's layer of each student layer.  select_heads: HeadSelection.  teacher: what LayerReader read of it.
        """
        found: dict[Place, list[Mixed]] = {"map": [], "output": []}
        for position, place in enumerate(self._spans):
            for i, t in enumerate(layers.attention):
                source = select_heads(teacher.attentions[t], i) if place == "map" else teacher.attention_projected[t]
                found[place].append(Mixed(source, self.weights[position]))
        return Mixture(found["map"], found["output"])
