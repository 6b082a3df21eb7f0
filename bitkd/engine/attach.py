"""Let the engine run the layers of a packed model: `attach` replaces the `forward` of its bare encoder.

A call computes the embeddings, gathers the real tokens, runs all layers in one call of the engine, and puts the tokens back, with
zeros for the padding. What the engine does not compute (see `EngineForward`) runs by the packed layers as before. The engine
does not call the modules inside the layers, so their hooks do not run.
"""

import logging

from transformers import PreTrainedModel

from bitkd.engine.build import MODE, mode
from bitkd.engine.families import find_obstacle
from bitkd.engine.forward import EngineForward
from bitkd.errors import InputError

log = logging.getLogger(__name__)


def attach(model: PreTrainedModel) -> bool:
    """Let the engine run the layers of a packed model, in place. Whether it will.

    The engine is compiled or loaded at the first call that needs it. With `BITKD_ENGINE=off` nothing is done; with
    `BITKD_ENGINE=require` it is loaded now, and InputError says why a model or a machine has to do without it.
    """
    wanted = mode()
    if wanted == "off":
        return False
    if obstacle := find_obstacle(model):
        if wanted == "require":
            raise InputError(f"{MODE}=require, but the engine does not run this model: {obstacle}")
        log.info("the engine does not run this model: %s", obstacle)
        return False
    base = model.base_model
    base.forward = forward = EngineForward(base)
    if wanted == "require":
        forward.native()
    return True


def detach(model: PreTrainedModel) -> None:
    """Undo `attach`."""
    if isinstance(vars(model.base_model).get("forward"), EngineForward):
        del model.base_model.forward


def kernels_of(model: PreTrainedModel) -> str | None:
    """The kernels that compute the products of an attached model, in words; None if it runs by the packed layers."""
    forward = model.base_model.forward
    native = forward.native() if isinstance(forward, EngineForward) else None
    return None if native is None else native.kernels
