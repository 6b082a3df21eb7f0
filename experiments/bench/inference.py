"""How fast packed students are (`make bench SUITE=inference`): beside FP32, bf16 and onnxruntime's int8 of the same shape.

Models have random weights of the shapes of BERT-base and MiniLM-L6; for speed with a vocabulary of 1000, since looking words up
does not count. Each figure is a median of rounds in which all take turns, in processor time of one thread. The targets are those
of a processor with AVX512-VBMI and VNNI; elsewhere such a figure is left out, and what remains is the AVX2 path. What cannot run
here is named.

`python experiments/bench/inference.py PART…` measures some parts only, see PARTS; `gpu compiled` compares with bf16 by
torch.compile too.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from figures import Result, report
from transformers import BertConfig, BertForSequenceClassification

from bitkd.commands.contenders import STOCK, AbsentError, Contender, batch_for, open_stock
from bitkd.commands.footprint import measure_footprint
from bitkd.engine.attach import kernels_of
from bitkd.engine.timing import Latency, measure_latency
from bitkd.models.attention import ATTENTION
from bitkd.models.packed import load_packed, save_packed
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.processes.libraries import quieten
from bitkd.processes.machine import describe_cpu
from bitkd.quant.spec import QuantSpec

SHAPES = {
    "BERT-base": {},
    "MiniLM-L6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
BATCHES = ((1, 32), (8, 128), (32, 128))
SECONDS = float(os.environ.get("BENCH_SECONDS", 4))
"""For a model and a shape of batch; large ones take three rounds, however long."""

AVX512 = {
    "BERT-base W1A8": {"eager": (6.5, 5, 5), "onnx": (1.6, 1.6, 1.6), "bf16": (2.2, 2.2, 2.2)},
    "MiniLM-L6 W1A8": {"eager": (6.2, 4.2, 4.4), "onnx": (1.6, 1.6, 1.6), "bf16": (2.2, 2.2, 2.2)},
    "BERT-base W2A8": {"eager": (5.5, 4, 4), "onnx": (1.4, 1.4, 1.4), "bf16": (1.9, 1.9, 1.9)},
    "BERT-base split": {"eager": (5.5, 4, 4), "onnx": (1.4, 1.4, 1.4), "bf16": (1.9, 1.9, 1.9)},
    "BERT-base W1A8, 5 layers": {"eager": (12, 12, 12)},
}
"""Student -> what it is compared with -> times faster at each of BATCHES. eager and bf16: keys of STOCK; onnx: the faster of
both graphs of onnxruntime. The student of 5 layers is compared with 12 of FP32."""

STUDENTS: dict[str, dict[str, Any]] = {
    "W1A8": {"bits": 1},
    "W2A8": {"bits": 2},
    "split": {"bits": 2, "split": True},
    "W1A8, 5 layers": {"bits": 1, "num_hidden_layers": 5},
}


def left_out(what: str, reason: str) -> None:
    print(f"--  {what}: left out, {reason}", flush=True)


def config_of(shape: str, **changes: Any) -> BertConfig:
    return BertConfig(**{"vocab_size": 1000, "num_labels": 3} | SHAPES[shape] | changes)


@functools.cache
def folder_of(shape: str, bits: int, split: bool = False, **changes: Any) -> Path:
    """A packed folder of random weights. It is deleted at the end."""
    torch.manual_seed(0)
    model = BertForSequenceClassification._from_config(config_of(shape, **changes), attn_implementation=ATTENTION)
    prepare(model.eval(), QuantSpec(weight_bits=bits, activation_bits=8))
    if split:
        split_ternary_(model)
    folder = Path(_root.name, f"{len(list(Path(_root.name).iterdir()))}")
    save_packed(model, folder)
    return folder


_root = tempfile.TemporaryDirectory()


def student(shape: str, **settings: Any) -> Any:
    return load_packed(folder_of(shape, **settings))


def stocks(shape: str, kinds: list[str], device: str = "cpu") -> dict[str, Callable[..., object]]:
    """The stock models that run here; the others are named."""
    found = {}
    for kind in kinds:
        try:
            found[kind] = open_stock(kind, config_of(shape), device, 1)
        except AbsentError as error:
            left_out(STOCK[kind], str(error))
    return found


def latencies(
    shape: str, batch: tuple[int, int], calls: dict[str, Callable[..., object]], device: str = "cpu"
) -> dict[str, Latency]:
    given = batch_for(config_of(shape), *batch, device)
    work = {name: functools.partial(call, given) for name, call in calls.items()}
    return measure_latency(work, SECONDS, device=device, cpu_time=device == "cpu")


def call_of(model: Any) -> Callable[..., object]:
    return lambda batch: model(**batch)


def has_avx512() -> bool:
    return {"vnni", "vbmi"} <= set(describe_cpu().rpartition("(")[2].rstrip(")").split(", "))


def speed(shape: str, names: tuple[str, ...]) -> Iterator[Result]:
    """Students against stock models, one thread."""
    torch.set_num_threads(1)
    kinds = ["eager", "bf16", "onnx_int8", "onnx_int8_fused"] if has_avx512() else ["eager"]
    calls = stocks(shape, kinds)
    for name in names:
        model = student(shape, **STUDENTS[name])
        calls[name] = call_of(model)
        print(f"    {shape} {name}: {kernels_of(model) or 'the packed layers'}", flush=True)
    if not has_avx512():
        left_out(f"{shape} against bf16 and onnxruntime", "their targets are those of a processor with AVX512")
    for place, batch in enumerate(BATCHES):
        times = latencies(shape, batch, calls)
        print(f"    {batch}: " + ", ".join(f"{n} {t.median * 1e3:.2f} ms" for n, t in times.items()), flush=True)
        for name in names:
            if not has_avx512():
                if name == "W1A8":
                    yield (
                        f"{shape} {name} {batch} by AVX2, FP32 eager",
                        times[name].times_faster_than(times["eager"]),
                        "×",
                        (">=", 2.5),
                    )
                continue
            for against, targets in AVX512[f"{shape} {name}"].items():
                others = [times[kind] for kind in times if kind.startswith(against)]
                if others:
                    ratio = min(times[name].times_faster_than(other) for other in others)
                    title = STOCK.get(against, "onnxruntime int8")
                    yield f"{shape} {name} {batch}, {title}", ratio, "×", (">=", targets[place])


def base() -> Iterator[Result]:
    yield from speed("BERT-base", ("W1A8", "W2A8", "split", "W1A8, 5 layers"))


def mini() -> Iterator[Result]:
    yield from speed("MiniLM-L6", ("W1A8",))


def threads() -> Iterator[Result]:
    """Two threads against one, in elapsed time."""
    if (os.cpu_count() or 1) < 2:
        left_out("two threads", "this machine has one core")
        return
    model = student("BERT-base", **STUDENTS["W1A8"])

    def run(count: int, batch: Any) -> object:
        torch.set_num_threads(count)
        return model(**batch)

    for batch in BATCHES[:2]:
        given = batch_for(config_of("BERT-base"), *batch)
        calls = {f"{count}": functools.partial(run, count, given) for count in (1, 2)}
        times = measure_latency(calls, SECONDS)
        yield f"two threads, BERT-base W1A8 {batch}", times["2"].times_faster_than(times["1"]), "×", (">=", 1.85)
    torch.set_num_threads(1)


def footprints() -> Iterator[Result]:
    """Loading and memory, in processes of their own."""
    folder = str(folder_of("BERT-base", **STUDENTS["W1A8"], vocab_size=30522))
    found = [measure_footprint(Contender("", kind, folder), "cpu", 1, 8, 128) for kind in ("given", "eager")]
    packed, plain = found
    if packed is None or plain is None:
        left_out("loading and memory", "a process failed")
        return
    yield "loading BERT-base W1A8, imports not counted", packed.load_seconds, "s", ("<", 0.5)
    if packed.peak_mib is None or plain.peak_mib is None:
        left_out("memory", "this system does not tell")
        return
    print(f"    {packed.peak_mib:.1f} MiB, FP32 {plain.peak_mib:.1f} MiB", flush=True)
    yield "memory above the imports' (8, 128), of FP32's", packed.peak_mib / plain.peak_mib, "×", ("<=", 0.1)


def gpu() -> Iterator[Result]:
    """Students against bf16 on a GPU, in elapsed time."""
    if not torch.cuda.is_available():
        left_out("GPU", "there is none")
        return
    print(f"    {torch.cuda.get_device_name()}", flush=True)
    compiled = "compiled" in sys.argv  # takes a minute for each shape
    for shape in ["BERT-base"] if compiled else SHAPES:
        kinds = ["bf16_eager", "bf16"] + ["bf16_compiled"] * compiled
        calls = stocks(shape, kinds, "cuda")
        for name in ("W1A8", "split"):
            calls[name] = call_of(student(shape, **STUDENTS[name]).cuda())
        between = calls["W1A8"]

        def in_bf16(batch: Any, call: Callable[..., object] = between) -> object:
            with torch.autocast("cuda", torch.bfloat16):
                return call(batch)

        calls["W1A8, bf16 between"] = in_bf16
        for batch in BATCHES[:2] if compiled else (*BATCHES, (256, 128)):
            times = latencies(shape, batch, calls, "cuda")
            print(
                f"    {shape} {batch}: " + ", ".join(f"{n} {t.median * 1e3:.3f} ms" for n, t in times.items()),
                flush=True,
            )
            for other in ("bf16", "bf16_compiled"):
                if other in times:
                    ratio = times["W1A8"].times_faster_than(times[other])
                    print(f"    {shape} W1A8 {batch}: {ratio:.2f} times {STOCK[other]}", flush=True)
            if batch in BATCHES[:2]:
                ratio = times["W1A8"].times_faster_than(times["bf16_eager"])
                yield f"GPU, {shape} W1A8 {batch}, bf16 eager", ratio, "×", (">=", 5)


PARTS = {"base": base, "mini": mini, "threads": threads, "footprints": footprints, "gpu": gpu}


def main() -> int:
    quieten()
    chosen = [name for name in sys.argv[1:] if name in PARTS] or list(PARTS)
    print(f"{describe_cpu()}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    with _root:
        return report("inference", [PARTS[name] for name in chosen])


if __name__ == "__main__":
    sys.exit(main())
