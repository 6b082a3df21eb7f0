"""Load time and peak memory of one model, in a process of its own: what other models left behind does not count.

`measure_footprint` starts it; the process is `python -m bitkd.commands.footprint REQUEST`, where REQUEST is JSON.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import torch
from transformers import AutoModelForSequenceClassification

from bitkd.commands.contenders import Contender, batch_for, onnx_file, open_contender, stock_config
from bitkd.processes.libraries import quieten
from bitkd.processes.memory import peak_mib, reset_peak


@dataclass(frozen=True)
class Footprint:
    """What a model takes."""

    load_seconds: float
    """To load it, imports not counted."""

    peak_mib: float | None
    """The process's peak above what imports take, while it is loaded and runs one shape: of the GPU, or of the process.
    None on systems that do not tell."""


def measure_footprint(contender: Contender, device: str, threads: int, rows: int, length: int) -> Footprint | None:
    """Open a contender in a new process and run it on one shape. None if the process fails."""
    request = {"contender": asdict(contender), "device": device, "threads": threads, "rows": rows, "length": length}
    command = [sys.executable, "-m", "bitkd.commands.footprint", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return Footprint(**json.loads(lines[-1])) if done.returncode == 0 and lines else None


def main(text: str) -> int:
    """Measure what a request names and print it as JSON; returns the exit code."""
    request = json.loads(text)
    contender, device = Contender(**request["contender"]), request["device"]
    quieten(show_notes=False)
    torch.set_num_threads(request["threads"])
    config = stock_config(contender.folder)
    with torch.device("meta"):  # imports the modelling file
        AutoModelForSequenceClassification.from_config(config)
    if onnx_file(contender.folder) or contender.kind.startswith("onnx"):
        import onnxruntime  # noqa: F401
    batch = batch_for(config, request["rows"], request["length"], device)
    reset_peak(device)
    before = peak_mib(device)
    began = time.perf_counter()
    call = open_contender(contender, device, request["threads"])
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        for _ in range(3):
            call(batch)
    peak = peak_mib(device)
    found = Footprint(seconds, None if peak is None or before is None else peak - before)
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
