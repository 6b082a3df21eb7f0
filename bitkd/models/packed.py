"""Packed students: for inference, 1 or 2 bits a weight on disk as in memory, and up to 8 of words.

A packed folder is a Hugging Face checkpoint that needs bitkd: `from_pretrained` reads it where bitkd is imported, and
`docs/artifacts.md` describes its files. The layers of a packed model give the very logits of the simulated student that
`bitkd.models.unpacked` makes of it; the engine (`bitkd.engine`) gives them up to rounding.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitkd.engine.attach import attach
from bitkd.errors import InputError
from bitkd.files import checksum, follow_umask
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.fit import PACKED_PAIR, fit_to_names, own_names
from bitkd.models.heads import head_in
from bitkd.models.marks import METHOD, PACKED, packed_record
from bitkd.models.marks import is_packed as is_packed
from bitkd.models.model_types import guard
from bitkd.models.packed_record import EXPORT_AGAIN, PackedRecord, check_config, config_digest, read_record
from bitkd.models.prepare import check_recorded
from bitkd.models.saving import SavedByBitkd, StudentQuantizationConfig
from bitkd.pretrained.load import check_finite, load_pretrained, read_model_config
from bitkd.pretrained.tokenizer import save_tokenizer
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.int8 import Int8Weight
from bitkd.quant.packed import PackedWeight, pack_layers
from bitkd.quant.packing import TERNARY_PACKINGS, TWO_BITS, Packing, is_packed_by
from bitkd.store.artifacts import STAGE_FILE, WEIGHTS_FILE

M = TypeVar("M", bound=PreTrainedModel)

_STORED = {torch.uint8: "U8", torch.int8: "I8", torch.int64: "I64", torch.bool: "BOOL"}
"""How safetensors calls the types of what is no floating-point number."""


def save_packed(
    model: PreTrainedModel,
    folder: Path | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    ternary: Packing = TWO_BITS,
    int8: Sequence[str] = (),
) -> None:
    """Write a packed folder: model.safetensors, config.json and the tokenizer's files.

    model: a quantized student, which is left unchanged, or a packed one.
    ternary, int8: see `pack_student`; a packed model stays as it is packed.
    The same weights give the same bytes. A packed folder is overwritten. Raises InputError if the model cannot be packed, or
    if the folder holds other weights.
    """
    folder = Path(folder)
    _check_free(folder)
    packed = model if is_packed(model.config) else pack_student(model, ternary=ternary, int8=int8)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS_FILE
    save_file(_stored(packed), file, metadata={"format": "pt"})
    follow_umask(file)
    config = copy.deepcopy(packed.config)
    config.architectures = [type(packed).__name__]
    config.dtype = "float32"
    config.quantization_config = _quantization(
        packed, checksum(file), config_digest(json.loads(config.to_json_string()))
    )
    config.save_pretrained(folder)
    guard(folder / "config.json")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def _check_free(folder: Path) -> None:
    """Raise InputError if a folder holds weights that are not packed: what is packed cannot be trained any more."""
    if (folder / STAGE_FILE).exists():
        raise InputError(f"{folder} is an artifact of bitkd, which would lose its weights; name another folder")
    if not (folder / WEIGHTS_FILE).exists():
        return
    try:
        packed = packed_record(json.loads((folder / "config.json").read_bytes())) is not None
    except (OSError, ValueError, AttributeError):
        packed = False
    if not packed:
        raise InputError(f"{folder} has a {WEIGHTS_FILE} that is not packed, and would be lost; name another folder")


@torch.no_grad()
def pack_student(model: M, *, ternary: Packing = TWO_BITS, int8: Sequence[str] = ()) -> M:
    """The packed copy of a quantized student, on the CPU, in eval mode.

    ternary: the packing of ternary weights.  int8: names out of `int8_parts(model)` that get 8 bits.
    What is not quantized is rounded to FP16, in which it is saved, and stays in FP32.
    Raises InputError if the model is packed already, is not what its configuration records, or has no quantized weights.
    """
    if is_packed(model.config):
        raise InputError(f"{type(model).__name__} is packed already; unpack_student gives a student that can be packed")
    check_recorded(model)
    _check_int8(int8, model)
    packed = copy.deepcopy(model).cpu()
    pack_layers(packed, ternary=ternary, int8=list(int8))
    if not any(isinstance(module, PackedWeight) for module in packed.modules()):
        spec = read_spec(model).quant
        raise InputError(
            f"{type(model).__name__} has no quantized weights to pack (weight_bits={spec.weight_bits}); use a student of 1 or "
            "2 bits"
        )
    kept = _scales(packed)
    for name, tensor in packed.state_dict().items():
        if tensor.is_floating_point() and name not in kept:
            half = tensor.half()
            if not half.isfinite().all():
                raise InputError(f"{name} has values that are not finite in FP16, in which it is saved; {EXPORT_AGAIN}")
            tensor.copy_(half)
    _mark(packed)
    return _ready(packed)


def int8_parts(model: PreTrainedModel) -> list[str]:
    """Names of what is not quantized but can have 8 bits: the table of positions, and the Linear of the pooler or the head
    that has as many outputs as inputs.
    """
    inside = {id(module) for layer in encoder_layers(model) for module in layer.modules()}
    found = []
    for name, module in model.named_modules():
        square = type(module) is nn.Linear and module.in_features == module.out_features
        positions = type(module) is nn.Embedding and name.rpartition(".")[2] == "position_embeddings"
        if (square or positions) and id(module) not in inside:
            found.append(name)
    return found


def load_packed(folder: Path | str) -> PreTrainedModel:
    """The packed model in a local folder, in eval mode. `from_pretrained` of transformers gives the same.

    Raises InputError if the folder holds no packed model, was written by a newer version of bitkd, or is damaged.
    """
    config = read_model_config(folder)
    if not is_packed(config):
        raise InputError(
            f"{folder} holds no packed model; name a folder that `bitkd export` or save_packed wrote, use load_student for "
            "an artifact, or load_predictor, which takes ONNX folders and plain checkpoints too"
        )
    model, _, _ = load_pretrained(head_in(config).auto_class, folder)
    loaded: PreTrainedModel = model
    return loaded


def fit_packed(model: PreTrainedModel, weights: Path | str) -> None:
    """Give a new model the packed layers of a file of weights, without their values, in place.

    model: of the shape and precision that its `config.bitkd` records.
    Raises InputError if the file is damaged or does not fit the model's configuration.
    """
    record = read_record(model, weights)
    if (actual := checksum(weights)) != record.checksum:
        raise InputError(
            f"{weights} is damaged: its SHA-256 is {actual}, not {record.checksum} as its config.json says; copy it again"
        )
    with safe_open(weights, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    names = own_names(model, parts)
    found = {own: (parts[name].get_dtype(), tuple(parts[name].get_shape())) for name, own in names.items()}
    modules = {name.rpartition(".")[0]: own.rpartition(".")[0] for name, own in names.items()}
    left_out = {name.rpartition(".")[0] for name in parts.keys() - names.keys()}
    try:
        fit_to_names(model, found.keys(), PACKED_PAIR)
        int8 = [modules.get(name, name) for name in record.int8 if name not in left_out]
        _check_int8(int8, model)
        pack_layers(model, ternary=TERNARY_PACKINGS[record.ternary], int8=int8, fill=False)
        _check_tensors(model, found)
    except (InputError, AttributeError) as error:
        raise InputError(f"{weights} does not fit its config.json: {error}") from error
    check_config(Path(weights).parent / "config.json", record)


def check_and_attach(model: M) -> M:
    """A packed model whose values were just loaded, checked and made ready. Raises InputError if a value is none that packing
    gives.
    """
    where = model.config.name_or_path or "the model"
    check_finite(model.state_dict(), where)
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight):
            for packed, scale in module.halves():
                columns = scale if module.column_scale is None else module.column_scale
                if not is_packed_by(packed, module.packing, module.columns) or (scale < 0).any() or (columns < 0).any():
                    raise InputError(
                        f"{where}: {name} has values that no packing gives; the file is damaged: {EXPORT_AGAIN}"
                    )
    _mark(model)
    attach(model)
    return _ready(model)


def _check_int8(names: Sequence[str], model: PreTrainedModel) -> None:
    allowed = int8_parts(model)
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise InputError(
            f"int8 names {wrong[0]!r}, which cannot have 8 bits; what can: {', '.join(allowed) or 'nothing'}"
        )


def _check_tensors(model: nn.Module, found: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise InputError if a file has other tensors than a packed model.  found: name -> its type in safetensors, and shape."""
    scales = _scales(model)
    expected = {
        name: (
            _STORED.get(tensor.dtype, "F32" if name in scales else "F16"),
            tuple(tensor.shape),
        )
        for name, tensor in model.state_dict().items()
    }
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"it lacks {missing[0]}")
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"it has {extra[0]}, which the model has not")
    for name, (kind, shape) in expected.items():
        if found[name] != (kind, shape):
            there, size = found[name]
            raise InputError(f"{name} is {there} of shape {size}, not {kind} of shape {shape}")


def _scales(model: nn.Module) -> set[str]:
    """Names of the scales and of what quantizers learned in the state dict of a packed model. They are FP32 on disk too."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, PackedWeight | Int8Weight | InputQuantizer)
        for name, tensor in chain(
            module.named_buffers(recurse=False),
            module.named_parameters(recurse=False) if isinstance(module, InputQuantizer) else (),
        )
        if tensor.is_floating_point()
    }


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a packed model as they are on disk."""
    scales = _scales(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {
        name: tensor.half() if tensor.is_floating_point() and name not in scales else tensor
        for name, tensor in state.items()
    }


def _quantization(model: nn.Module, of_weights: str = "", of_config: str = "") -> dict[str, Any]:
    """The `quantization_config` of a packed model, found in its modules.  of_weights, of_config: digests of its files, if any."""
    packings = [module.packing.name for module in model.modules() if isinstance(module, PackedWeight)]
    ternary = next((name for name in packings if name in TERNARY_PACKINGS), TWO_BITS.name)
    int8 = [name for name, module in model.named_modules() if isinstance(module, Int8Weight)]
    record = asdict(PackedRecord(ternary, int8, of_weights, of_config))
    return {"quant_method": METHOD, PACKED: {name: value for name, value in record.items() if value != ""}}


def _mark(model: PreTrainedModel) -> None:
    """Make transformers know that the model is packed, and save it as such."""
    model.config.quantization_config = _quantization(model)
    model.hf_quantizer = SavedByBitkd(StudentQuantizationConfig(packed=True))  # type: ignore[assignment]
    vars(model).update(is_quantized=True, quantization_method=METHOD)  # transformers refuses .half() then
    kind: Any = type(model)
    if not issubclass(kind, _SavedPacked):
        model.__class__ = _packed_class(kind)


def _ready(model: M) -> M:
    """Every packed model passes through here last: it is for inference only."""
    model.requires_grad_(False)
    return model.eval()


_MEANINGLESS = {
    "max_shard_size",
    "safe_serialization",
    "save_function",
    "save_peft_format",
    "save_original_format",
    "distributed_checkpoint",
}
"""Settings of `save_pretrained` that mean nothing for one small file."""


class _SavedPacked:
    """A packed model's own methods, before those of its stock class (see `_packed_class`)."""

    def save_pretrained(
        self: Any,
        save_directory: Path | str,
        is_main_process: bool = True,
        state_dict: None = None,
        push_to_hub: bool = False,
        variant: None = None,
        repo_id: str | None = None,
        **settings: Any,
    ) -> None:
        """`save_packed` of this model: the file has the same bytes, and config.json its guards.

        settings: for `push_to_hub`, such as private, revision and token; those in `_MEANINGLESS` are ignored.
        Raises InputError for other weights or another name of the file.
        """
        if state_dict is not None or variant is not None:
            raise InputError("a packed model is saved as it is, as model.safetensors; leave out state_dict and variant")
        if not is_main_process:
            return
        save_packed(self, save_directory)
        if push_to_hub:
            settings = {name: value for name, value in settings.items() if name not in _MEANINGLESS}
            self.push_to_hub(repo_id or Path(save_directory).name, **settings)

    def __reduce__(self) -> Any:
        return _new_packed, (type(self).__bases__[1],), vars(self)


@cache
def _packed_class(stock: type) -> type:
    """A class of transformers whose models are saved packed. It has the name of the stock class."""
    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(stock.__name__, (_SavedPacked, stock), names)


def _new_packed(stock: type) -> Any:
    """An empty model, for copies: pickle does not find its class by name."""
    found: Any = _packed_class(stock)
    return found.__new__(found)
