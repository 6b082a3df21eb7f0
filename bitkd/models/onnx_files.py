"""Folders with an ONNX model, as `bitkd.export.onnx` writes them. It imports neither torch nor onnxruntime, so that wrong input
is answered at once."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.files import checksum
from bitkd.pretrained.files import ONNX_FILE, ONNX_RECORD, check_no_pointers, read_config_data

FORMAT = 1
"""Version of such folders; those of another version are refused."""

LOGITS = "logits"
"""Name of the graph's output."""

EXPORT_AGAIN = "export the student again"

_AGAIN = f"{EXPORT_AGAIN}, or copy the folder again"


def is_onnx(folder: Path | str) -> bool:
    """Whether a folder holds an ONNX model of `bitkd export`. Raises InputError if it has no readable config.json."""
    return ONNX_RECORD in read_config_data(Path(folder))


def check_onnx_files(folder: Path | str) -> None:
    """Raise InputError if a folder's ONNX model is missing, damaged, or of another version, or if onnxruntime is not
    installed.
    """
    folder = Path(folder)
    record: Any = read_config_data(folder).get(ONNX_RECORD)
    where = f"{folder / 'config.json'}: {ONNX_RECORD}"
    if not isinstance(record, dict) or not isinstance(record.get("checksum"), str):
        raise InputError(f"{where} does not tell the version and the checksum of {ONNX_FILE}; {_AGAIN}")
    if (found := record.get("format")) != FORMAT:
        newer = "install a newer bitkd" if isinstance(found, int) and found > FORMAT else EXPORT_AGAIN
        raise InputError(f"{where} has format {found!r}, this version of bitkd reads {FORMAT}; {newer}")
    file = folder / ONNX_FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {ONNX_FILE}; {_AGAIN}")
    check_no_pointers([file])
    if (found := checksum(file)) != record["checksum"]:
        raise InputError(
            f"{file} is damaged: its SHA-256 is {found[:12]}…, its config.json says {record['checksum'][:12]}…; {_AGAIN}"
        )
    check_installed("onnxruntime")


def check_installed(package: str) -> None:
    """Raise InputError if a package of the extra `onnx` is not installed."""
    if find_spec(package) is None:
        raise InputError(f"ONNX needs the package {package}, which is not installed; pip install 'bitkd[onnx]'")
