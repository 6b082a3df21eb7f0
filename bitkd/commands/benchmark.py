"""The command benchmark: how fast models are on this machine, beside stock models of the same shape."""

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any

from bitkd.commands.checkpoints import check_folder
from bitkd.commands.output import print_json
from bitkd.data.hub import resolve_pretrained
from bitkd.errors import InputError
from bitkd.models.onnx_files import check_onnx_files, is_onnx
from bitkd.pretrained.files import ONNX_FILE, check_checkpoint_files, read_config_data, weight_files
from bitkd.processes.libraries import quieten
from bitkd.processes.machine import describe_cpu, find_machine

Shape = tuple[int, int]
"""Rows of a batch, and tokens of a row."""

DEFAULT_SHAPES = "1x32,8x128,32x128"
"""Shortened for models that read fewer tokens."""


def benchmark_command(arguments: argparse.Namespace) -> int:
    """Print latency, throughput, memory and load time of models; returns the exit code."""
    shapes = [_shape(text) for text in (arguments.shapes or DEFAULT_SHAPES).split(",")]
    if arguments.threads < 1:
        raise InputError(f"--threads={arguments.threads} is not at least 1")
    if not arguments.seconds > 0:
        raise InputError(f"--seconds={arguments.seconds:g} is not above 0")
    folders = {name: _folder(name) for name in dict.fromkeys(arguments.folders)}
    limits = {name: read_config_data(folder).get("max_position_embeddings") for name, folder in folders.items()}
    if arguments.shapes:  # given ones are checked before torch is imported
        _check_lengths(limits, shapes)
    if arguments.device == "cuda" and not (machine := find_machine()).gpus:
        raise InputError(f"--device=cuda: there is no GPU that PyTorch can use ({machine.reason}); use --device=cpu")
    quieten()
    from bitkd.commands.contenders import stock_config
    from bitkd.models.probe import read_limits

    # RoBERTa and its like read fewer tokens than their configuration says.
    limits = {name: read_limits(stock_config(folder)).positions for name, folder in folders.items()}
    if arguments.shapes:
        _check_lengths(limits, shapes)
    else:
        shapes = _shortened(shapes, limits)
    found = _measure(folders, shapes, arguments)
    if arguments.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _shape(text: str) -> Shape:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip())
    if found is None:
        raise InputError(f"--shapes: {text!r} is no shape; give rows x tokens, such as 1x32,8x128")
    return int(found[1]), int(found[2])


def _folder(name: str) -> Path:
    folder = resolve_pretrained(name, setting="FOLDER ")
    check_folder(name, folder)
    if is_onnx(folder):
        check_onnx_files(folder)
    else:
        check_checkpoint_files(folder)
    return folder


def _check_lengths(limits: dict[str, Any], shapes: list[Shape]) -> None:
    """Raise InputError if a model cannot read a shape.  limits: tokens that each can read; 0 or nothing if without a limit."""
    longest = max(length for _, length in shapes)
    for name, positions in limits.items():
        if isinstance(positions, int) and 0 < positions < longest:
            raise InputError(
                f"--shapes: {name} reads {positions} tokens, not {longest}; leave the longer shapes out, or give shorter "
                f"ones, such as 8x{positions}"
            )


def _shortened(shapes: list[Shape], limits: dict[str, Any]) -> list[Shape]:
    """The shapes with rows that every model can read, each once."""
    longest = min((limit for limit in limits.values() if isinstance(limit, int) and limit > 0), default=None)
    return list(dict.fromkeys((rows, min(length, longest or length)) for rows, length in shapes))


def _measure(folders: dict[str, Path], shapes: list[Shape], arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from bitkd.commands.contenders import (
        BASE,
        STOCK,
        AbsentError,
        Contender,
        batch_for,
        describe,
        open_contender,
        stock,
        stock_config,
    )
    from bitkd.commands.footprint import measure_footprint
    from bitkd.engine.timing import measure_latency

    device, threads = arguments.device, arguments.threads
    torch.set_num_threads(threads)
    cpu_time = threads == 1 and device == "cpu"
    configs = [stock_config(folder) for folder in folders.values()]
    first = str(next(iter(folders.values())))
    vocabulary = min(config.vocab_size for config in configs)
    kinds = [kind for kind in STOCK if kind != "bf16_eager" or device == "cuda"]
    if device == "cpu" or not arguments.compiled:
        kinds.remove("bf16_compiled")
    contenders = [stock(kind, first) for kind in kinds]
    contenders += [Contender(name, "given", str(folder)) for name, folder in folders.items()]
    calls, absent = {}, {}
    for contender in contenders:
        try:
            calls[contender] = open_contender(contender, device)
        except AbsentError as error:
            absent[contender.name] = str(error)
    sections = []
    for rows, length in shapes:
        batch = batch_for(rows, length, vocabulary, device)
        work = {contender.name: partial(call, batch) for contender, call in calls.items()}
        times = measure_latency(work, arguments.seconds, device=device, cpu_time=cpu_time)
        results = [
            {
                "name": name,
                "milliseconds": latency.median * 1e3,
                "rows_per_second": rows / latency.median,
                "times_fp32": latency.times_faster_than(times[STOCK[BASE]]),
                "rounds": len(latency.seconds),
            }
            for name, latency in times.items()
        ]
        sections.append({"rows": rows, "length": length, "results": results})
    held = [contender for contender in calls if contender.kind in ("given", BASE)]
    del calls
    footprints = []
    for contender in [] if arguments.no_memory else held:
        try:
            rows, length = max(shapes, key=lambda shape: shape[0] * shape[1])
            footprint = measure_footprint(contender, device, threads, rows, length)
        except AbsentError as error:
            footprint = None
            absent[f"load time and memory of {contender.name}"] = str(error)
        given = contender.kind == "given"
        footprints.append(
            {
                "name": contender.name,
                "load_seconds": footprint.load_seconds if footprint and given else None,
                "memory_mib": footprint.peak_mib if footprint else None,
                "file_mib": _file_mib(folders[contender.name]) if given else None,
            }
        )
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "machine": {"cpu": describe_cpu(), "gpu": gpu, "threads": threads, "torch": torch.__version__},
        "measured": _measured(threads, device, first if len(folders) > 1 else None),
        "models": {name: describe(Contender(name, "given", str(folder))) for name, folder in folders.items()},
        "shapes": sections,
        "footprints": footprints,
        "absent": absent,
    }


def _file_mib(folder: Path) -> float:
    """MiB of the weights that are loaded."""
    files = [folder / ONNX_FILE] if is_onnx(folder) else weight_files(folder)
    return sum(file.stat().st_size for file in files) / 2**20


def _measured(threads: int, device: str, first: str | None) -> str:
    """How it was measured, in a sentence or two."""
    clock = "processor time of one thread" if threads == 1 and device == "cpu" else "elapsed time"
    of = f" of {first}" if first else ""
    return (
        f"Each figure is the median of rounds in which all models take turns ({clock}); times FP32 is the median of the "
        f"rounds' ratios. FP32, bf16 and onnxruntime run a stock model of random weights with the configuration{of}. Rows "
        "have no padding."
    )


def _print(found: dict[str, Any]) -> None:
    from bitkd.report.console import Console
    from bitkd.report.fitted import FittedTable
    from bitkd.report.numbers import DASH

    console, machine = Console(), found["machine"]
    kinds = found["models"]

    def title(name: str) -> str:
        return f"{name} ({kinds[name]})" if name in kinds else name

    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    where = f"{machine['gpu']}; " if machine["gpu"] else ""
    console.print(f"{where}{machine['cpu']}, {threads}, torch {machine['torch']}")
    for section in found["shapes"]:
        rows, length = section["rows"], section["length"]
        console.print(f"\n{rows} {'row' if rows == 1 else 'rows'} of {length} tokens")
        cells = [
            [
                title(each["name"]),
                f"{each['milliseconds']:.4g}",
                f"{each['rows_per_second']:.4g}",
                f"{each['times_fp32']:.2f}",
            ]
            for each in section["results"]
        ]
        console.print(FittedTable(["model", "ms", "rows/s", "times FP32"], cells))
    if found["footprints"]:
        console.print("\nIn a process of its own, at the largest shape")

        def text(value: float | None, form: str) -> str:
            return DASH if value is None else format(value, form)

        cells = [
            [title(e["name"]), text(e["file_mib"], ".2f"), text(e["load_seconds"], ".2f"), text(e["memory_mib"], ".0f")]
            for e in found["footprints"]
        ]
        console.print(FittedTable(["model", "file MiB", "load s", "memory MiB"], cells))
    console.print("")
    for name, reason in found["absent"].items():
        console.print(f"not measured: {name}: {reason}")
    console.print(found["measured"])
