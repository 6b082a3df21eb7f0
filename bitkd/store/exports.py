"""Folders that `bitkd export` wrote. They are in no store: each may be copied, uploaded and downloaded."""

from dataclasses import replace
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import checksum, write_json
from bitkd.names import is_name, shown
from bitkd.store.records import ExportRecord, parse_record

EXPORT_FILE = "export.json"
CARD_FILE = "README.md"

EXPORT_FORMAT = 1

_ADVICE = "export the artifact again, or download the folder again"


def is_export(folder: Path) -> bool:
    """Whether `bitkd export` wrote a folder."""
    return (folder / EXPORT_FILE).is_file()


def read_export(folder: Path) -> ExportRecord:
    """The record of an exported folder. Raises InputError if there is none, or if it is damaged or of another version."""
    file = folder / EXPORT_FILE
    if not file.is_file():
        raise InputError(f"{folder} is no exported folder: it has no {EXPORT_FILE}; name one that `bitkd export` wrote")
    record = parse_record(ExportRecord, file.read_bytes(), file, _ADVICE)
    if record.format != EXPORT_FORMAT:
        raise InputError(
            f"{file} was written by another version of bitkd (format {record.format}, this one reads {EXPORT_FORMAT}); "
            "export the artifact again, or use that version"
        )
    if odd := next((name for name in record.checksums if not is_name(name)), None):
        raise InputError(f"{file} is damaged (it names the file {shown(odd)}); {_ADVICE}")
    return record


def check_export(folder: Path) -> ExportRecord:
    """The record of an exported folder. Raises InputError if one of its files has another checksum than was recorded.

    An absent file is left to whoever reads it: a download from the hub takes only what is needed.
    """
    record = read_export(folder)
    for name, expected in record.checksums.items():
        file = folder / name
        if file.is_file() and (found := checksum(file)) != expected:
            raise InputError(
                f"{file} has checksum {found[:12]}…, its record says {expected[:12]}…; {_ADVICE}, or delete {EXPORT_FILE} if you "
                "changed it yourself: the folder is then used without its record"
            )
    return record


def write_export(folder: Path, record: ExportRecord) -> None:
    """Write the record of a folder that is complete but for its model card, with the checksums of its files."""
    checksums = {file.name: checksum(file) for file in sorted(folder.iterdir()) if file.name != CARD_FILE}
    write_json(folder / EXPORT_FILE, replace(record, checksums=checksums).as_data())
