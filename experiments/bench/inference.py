"""How fast packed students are (`make bench SUITE=inference`): beside FP32, bf16 and onnxruntime's int8 of the same shape.

Models have random weights of the shapes of BERT-base and MiniLM-L6; for speed with a vocabulary of 1000, since looking words up
does not count. Each figure is a median of rounds in which all take turns, in processor time of one thread. The targets are those
of a processor with AVX512-VBMI and VNNI (with AMX, the products run by AMX: kernels are printed); elsewhere such a figure is left
out, and what remains is the AVX2 path. What cannot run here is named.

`python experiments/bench/inference.py PART… --shapes 1x32,8x128` measures some parts or shapes only, see PARTS and BATCHES.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from figures import Result, report
from transformers import BertConfig, BertForSequenceClassification

from bitkd.commands.contenders import STOCK, AbsentError, Contender, batch_for, open_stock
from bitkd.commands.footprint import measure_footprint
from bitkd.engine import build
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
VOCABULARY = 1000
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
    return BertConfig(**{"vocab_size": VOCABULARY, "num_labels": 3} | SHAPES[shape] | changes)


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
            found[kind] = open_stock(kind, config_of(shape), device)
        except AbsentError as error:
            left_out(STOCK[kind], str(error))
    return found


def latencies(
    shape: str, batch: tuple[int, int], calls: dict[str, Callable[..., object]], device: str = "cpu"
) -> dict[str, Latency]:
    given = batch_for(*batch, VOCABULARY, device)
    work = {name: functools.partial(call, given) for name, call in calls.items()}
    return measure_latency(work, SECONDS, device=device, cpu_time=device == "cpu")


def call_of(model: Any) -> Callable[..., object]:
    return lambda batch: model(**batch)


def has_avx512() -> bool:
    return {"avx512_vnni", "avx512vbmi"} <= set(build.cpu_features())


def speed(shape: str, names: Iterable[str], batches: Iterable[tuple[int, int]]) -> Iterator[Result]:
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
    for batch in batches:
        place = BATCHES.index(batch)
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


def base(options: argparse.Namespace) -> Iterator[Result]:
    yield from speed("BERT-base", options.students or STUDENTS, options.shapes)


def mini(options: argparse.Namespace) -> Iterator[Result]:
    yield from speed("MiniLM-L6", ("W1A8",), options.shapes)


def products(_: argparse.Namespace) -> Iterator[Result]:
    """Each kernel's products beside the peaks of VNNI and of FP32's fused multiply-add, in GMAC/s."""
    speeds: dict[str, float] = {}  # the best of all shapes, by kernel; peaks by "peak FP32" and "peak VNNI"
    for line in products_by_kernel():
        name, _, value = line.rpartition(" ")
        print(f"    {line} GMAC/s", flush=True)
        kernel = name if name.startswith("peak") else name.split()[0]
        speeds[kernel] = max(speeds.get(kernel, 0.0), float(value))
    if (peak := speeds.pop("peak VNNI", None)) is None:
        left_out("products of VNNI", "this processor has no AVX512 with VNNI")
    fp32 = speeds.pop("peak FP32")
    for kernel, target in (("VNNI", 0.93), ("TABLE64", 1.0)):
        if peak is not None and kernel in speeds:
            yield f"best product of {kernel}, of VNNI's peak", speeds[kernel] / peak, "×", (">=", target)
    best = max(speeds, key=lambda kernel: speeds[kernel])
    yield f"best product of all ({best}), of FP32's peak", speeds[best] / fp32, "×", (">=", 2.5)


def products_by_kernel() -> list[str]:
    """Lines of products.cpp, compiled as the engine is; raises an error of subprocess if it does not compile."""
    source = Path(__file__).with_name("products.cpp")
    program = Path(_root.name, "products")
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    compiler = build.find_compiler()
    assert compiler is not None, "there is no C++ compiler"
    subprocess.run([*compiler, *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


def threads(_: argparse.Namespace) -> Iterator[Result]:
    """Two threads against one, in elapsed time."""
    if (os.cpu_count() or 1) < 2:
        left_out("two threads", "this machine has one core")
        return
    model = student("BERT-base", **STUDENTS["W1A8"])

    def run(count: int, batch: Any) -> object:
        torch.set_num_threads(count)
        return model(**batch)

    for batch in BATCHES[:2]:
        given = batch_for(*batch, VOCABULARY)
        calls = {f"{count}": functools.partial(run, count, given) for count in (1, 2)}
        times = measure_latency(calls, SECONDS)
        yield f"two threads, BERT-base W1A8 {batch}", times["2"].times_faster_than(times["1"]), "×", (">=", 1.85)
    torch.set_num_threads(1)


def footprints(_: argparse.Namespace) -> Iterator[Result]:
    """Loading and memory, in processes of their own."""
    folder = str(folder_of("BERT-base", **STUDENTS["W1A8"], vocab_size=30522))
    try:
        packed, plain = [
            measure_footprint(Contender("", kind, folder), "cpu", 1, 8, 128) for kind in ("given", "eager")
        ]
    except AbsentError as error:
        left_out("loading and memory", str(error))
        return
    yield "loading BERT-base W1A8, imports not counted", packed.load_seconds, "s", ("<", 0.5)
    if packed.peak_mib is None or plain.peak_mib is None:
        left_out("memory", "this system does not tell")
        return
    print(f"    {packed.peak_mib:.1f} MiB, FP32 {plain.peak_mib:.1f} MiB", flush=True)
    yield (
        "memory above what imports and a tiny model take (8, 128), of FP32's",
        packed.peak_mib / plain.peak_mib,
        "×",
        ("<=", 0.1),
    )


def gpu(_: argparse.Namespace, compiled: bool = False) -> Iterator[Result]:
    """Students against bf16 on a GPU, in elapsed time.  compiled: also against bf16 by torch.compile, which takes a minute
    for each shape."""
    if not torch.cuda.is_available():
        left_out("GPU", "there is none")
        return
    print(f"    {torch.cuda.get_device_name()}", flush=True)
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


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Result]]] = {
    "products": products,
    "footprints": footprints,
    "mini": mini,
    "base": base,
    "threads": threads,
    "gpu": gpu,
    "compiled": functools.partial(gpu, compiled=True),
}


def shapes_of(text: str) -> list[tuple[int, int]]:
    known = {f"{rows}x{length}": (rows, length) for rows, length in BATCHES}
    try:
        return [known[shape] for shape in text.split(",")]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: shapes with targets are {', '.join(known)}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="How fast packed students are, beside stock models.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is given")
    parser.add_argument("--shapes", type=shapes_of, default=list(BATCHES), help="of base and mini, such as 1x32,8x128")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, help="of base; all if none is given")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    quieten()
    print(f"{describe_cpu()}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    with _root:
        return report("inference", [functools.partial(PARTS[name], options) for name in options.parts or PARTS])


if __name__ == "__main__":
    sys.exit(main())
