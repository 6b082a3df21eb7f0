"""Load time and peak memory of one model, in a process of its own: what other models left behind does not count.

`measure_footprint` starts it; the process is `python -m bitkd.commands.footprint REQUEST`, where REQUEST is JSON. Before the
measurement, it saves, loads and runs a tiny stock model of the same family: much of transformers, safetensors and torch is
loaded on first use, and does not count as the model's.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from bitkd.commands.contenders import LARGEST_TOKEN, AbsentError, Contender, batch_for, open_contender, stock_config
from bitkd.models.onnx_files import is_onnx
from bitkd.processes.libraries import quieten
from bitkd.processes.memory import peak_mib, reset_peak


@dataclass(frozen=True)
class Footprint:
    """What a model takes."""

    load_seconds: float
    """To load it, imports not counted."""

    peak_mib: float | None
    """The process's peak above what imports and a tiny model take, while it is loaded and runs one shape: of the GPU, or of
    the process. None on systems that do not tell."""


def measure_footprint(contender: Contender, device: str, threads: int, rows: int, length: int) -> Footprint:
    """Open a contender in a new process and run it on one shape. Raises AbsentError, with the reason, if the process fails."""
    request = {"contender": asdict(contender), "device": device, "threads": threads, "rows": rows, "length": length}
    command = [sys.executable, "-m", "bitkd.commands.footprint", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        reasons = done.stderr.strip().splitlines()
        raise AbsentError(reasons[-1] if reasons else f"its process ended with code {done.returncode}")
    return Footprint(**json.loads(lines[-1]))


def main(text: str) -> int:
    """Measure what a request names and print it as JSON; returns the exit code."""
    request = json.loads(text)
    contender, device = Contender(**request["contender"]), request["device"]
    quieten(show_notes=False)
    torch.set_num_threads(request["threads"])
    config = stock_config(contender.folder)
    _use_tiny_model(config, device)
    if is_onnx(contender.folder) or contender.kind.startswith("onnx"):
        import onnxruntime  # noqa: F401
    batch = batch_for(request["rows"], request["length"], config.vocab_size, device)
    reset_peak(device)
    before = peak_mib(device)
    began = time.perf_counter()
    call = open_contender(contender, device)
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        for _ in range(3):
            call(batch)
    peak = peak_mib(device)
    found = Footprint(seconds, None if peak is None or before is None else peak - before)
    print(json.dumps(asdict(found)))
    return 0


def _use_tiny_model(config: PretrainedConfig, device: str) -> None:
    """Save, load and run a stock model of the same family, so that what they load on first use is there."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": LARGEST_TOKEN,
        "pad_token_id": 0,
    }
    tiny = type(config)(**sizes)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        AutoModelForSequenceClassification.from_config(tiny).save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.eval().to(device)(**batch_for(1, 8, LARGEST_TOKEN, device))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
