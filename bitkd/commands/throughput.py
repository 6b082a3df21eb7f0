"""The throughput command."""

import argparse
import dataclasses
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.errors import InputError
from bitkd.files import write_json
from bitkd.pipeline.throughput import Throughput, measured
from bitkd.report.console import Console
from bitkd.report.tables import TextTable
from bitkd.report.terminal import render_text
from bitkd.store.run_folder import RunFolder

FEW_STEPS = 50
LARGE_SPREAD = 1.1


def throughput_command(arguments: argparse.Namespace) -> int:
    """Print how long a step of each stage took, and write it to a file; returns the exit code."""
    folders = [RunFolder.read(Path(run).expanduser()) for run in arguments.runs]
    # Runs share artifacts by links.
    artifacts = {artifact.path.resolve(): artifact for folder in folders for artifact in folder.artifacts().values()}
    found = measured([artifact.stage for artifact in artifacts.values()], arguments.device)
    if arguments.out:
        try:
            out = Path(arguments.out).expanduser()
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, dataclasses.asdict(found))
        except OSError as error:
            raise InputError(
                f"--out={arguments.out} cannot be written ({error.strerror}); name another file"
            ) from error
    if arguments.json:
        print_json(dataclasses.asdict(found))
        return 0
    console = Console()
    console.print(f"Training alone on {found.device}; validations and checkpoints are not counted.")
    console.print(render_text(_table(found)))
    for text in _doubts(found):
        console.print(text)
    if arguments.out:
        console.print(f"{arguments.out} is for budget.throughput=")
    return 0


def _table(found: Throughput) -> TextTable:
    header = ["stage", "steps", "seconds per step", "seconds before the steps", "artifacts", "slowest / fastest"]
    rows = [
        [time.title, f"{time.steps:,}", f"{time.seconds_per_step:.4g}", f"{time.seconds_before:.3g}", str(time.artifacts),
         f"{time.slowest:.2f}"]
        for time in found.stages
    ]  # fmt: skip
    return TextTable(header, rows)


def _doubts(found: Throughput) -> list[str]:
    texts = []
    if few := [time.title for time in found.stages if 0 < time.steps < FEW_STEPS]:
        texts.append(
            f"Fewer than {FEW_STEPS} steps were measured of {', '.join(few)}; the first steps are slower than the rest."
        )
    if uneven := [time.title for time in found.stages if time.slowest > LARGE_SPREAD]:
        texts.append(
            f"The artifacts of {', '.join(uneven)} differ by more than {100 * (LARGE_SPREAD - 1):.0f} % in their time; was the "
            "device idle? The median is taken."
        )
    return texts
