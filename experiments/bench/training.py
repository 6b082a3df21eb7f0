"""How fast a training step is (`make bench SUITE=training`): every stage beside a plain Hugging Face loop, and the fit of
`bitkd run` beside its own module.

The plain loop is what one writes by hand without bitkd: two models with eager attention and the same losses, all in FP32, nothing
quantized. Models have the shapes of MiniLM-L6 and BERT-base, and random weights. All take turns, and figures are medians of the
rounds' ratios: on a processor in processor time of one thread, on a GPU in elapsed time (there, milliseconds are printed too).

`python experiments/bench/training.py PART… --device=cuda --rows=32 --length=64` measures some parts, see PARTS, or another batch.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import lightning.pytorch as pl
import numpy as np
import torch
import torch._dynamo
from data import ROWS, TOKENS, make_tokenizer
from figures import Result, report
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from transformers import BertConfig, BertForSequenceClassification

import bitkd
from bitkd.engine.build import cpu_features
from bitkd.models.attention import ATTENTION
from bitkd.models.importance import estimate_importance
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.processes.group import make_trainer
from bitkd.processes.libraries import quieten
from bitkd.processes.machine import describe_cpu
from bitkd.processes.memory import peak_mib, reset_peak
from bitkd.quant.spec import QuantSpec
from bitkd.stages.compiling import compilation, compile_layers
from bitkd.stages.cuda_graphs import RECORDED_AT, GraphedLosses, own_stream
from bitkd.stages.kinds import kind_of
from bitkd.stages.spec import OptimSpec

SHAPES = {
    "BERT-base": {},
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
BATCHES = {"cpu": [("MiniLM-L6", 32, 128)], "cuda": [("BERT-base", 32, 128), ("MiniLM-L6", 32, 64)]}
"""Device -> model, rows and tokens of a batch; the targets are those of the first."""

CACHE = Path("build/bench/compiled")
"""Compiled graphs of earlier calls."""

FP32, BF16 = "FP32", "bf16"
LABELS = {0: "not_equivalent", 1: "equivalent"}
LR, CLIP = 5e-5, 1.0
OPTIM = OptimSpec(lr=LR, warmup_ratio=0.0, schedule="constant")


@dataclass(frozen=True)
class Arm:
    """A stage, and the largest share of the plain loop's step that its own may take."""

    title: str
    kind: str
    quant: QuantSpec
    gpu: float | None
    cpu: float | None
    width: float = 1.0
    split: bool = False


W1A8 = QuantSpec(weight_bits=1, activation_bits=8)
W2A8 = QuantSpec(weight_bits=2, activation_bits=8)
ARMS = {
    "fp32": Arm("Single-Stage KD, FP32 student", "single_stage", QuantSpec(), None, None),
    "w1a8": Arm("Single-Stage KD, W1A8", "single_stage", W1A8, 0.40, 1.05),
    "w2a8": Arm(
        "KD, W2A8 with Q, K, V, probabilities",
        "single_stage",
        QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True),
        0.50,
        1.15,
    ),
    "stage1": Arm("Stage-I KD, split, half width", "intermediate", W2A8, 0.45, 0.95, width=0.5, split=True),
    "stage2": Arm("Stage-II KD, W1A8", "prediction", W1A8, 0.25, 0.70),
}

MEMORY = {("cuda", BF16): 3.6, ("cpu", FP32): 3.0, ("cpu", BF16): 2.5}
"""Device and precision -> GiB of a W1A8 step at most."""

PEERS = (
    ("DeepSpeed's XTC", "1.08"),
    ("BinaryBERT", "1.51 and 2.44"),
    ("TextBrewer", "1.02 to 1.07"),
)
"""Other programs' steps, each as a multiple of a plain loop with its own losses, in FP32 with all rows padded."""


@dataclass(frozen=True)
class Setting:
    """What is measured on what."""

    device: str
    precision: str
    shape: str
    rows: int
    length: int
    threads: int
    main: bool
    """Whether the targets are meant for this batch."""

    def __str__(self) -> str:
        return f"{self.shape} {self.rows} × {self.length} {self.precision}"

    def now(self) -> float:
        """Seconds: of the processor if one thread works, else elapsed ones, with all work of the GPU done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" and self.threads == 1 else time.perf_counter()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == BF16)

    def batch(self) -> dict[str, torch.Tensor]:
        """Random tokens. As in batches of similar lengths, rows are up to an eighth shorter than the longest."""
        generator = torch.Generator().manual_seed(0)
        shape = self.rows, self.length
        lengths = torch.linspace(self.length, self.length * 7 / 8, self.rows).long()
        mask = (torch.arange(self.length) < lengths[:, None]).long()
        batch = {
            "input_ids": torch.randint(1000, 28_000, shape, generator=generator) * mask,
            "attention_mask": mask,
            "token_type_ids": torch.zeros(shape, dtype=torch.long),
            "labels": torch.randint(0, 2, (self.rows,), generator=generator),
            "index": torch.arange(self.rows),
        }
        return {name: column.to(self.device) for name, column in batch.items()}

    def model(self, attention: str) -> BertForSequenceClassification:
        torch.manual_seed(0)
        config = BertConfig(num_labels=2, **SHAPES[self.shape])
        return BertForSequenceClassification._from_config(config, attn_implementation=attention).to(self.device)


class PlainLoop:
    """A distillation step as one writes it by hand with transformers."""

    def __init__(self, setting: Setting, compiled: bool = False) -> None:
        self.setting, self.batch = setting, setting.batch()
        self.teacher, self.student = setting.model("eager").eval(), setting.model("eager").train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=LR)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _loss(self) -> torch.Tensor:
        inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            target = self.teacher(**inputs, output_hidden_states=True, output_attentions=True)
        output = self.student(**inputs, output_hidden_states=True, output_attentions=True)
        loss = -(target.logits.softmax(-1) * output.logits.log_softmax(-1)).sum(-1).mean()
        for mine, its in zip(output.hidden_states, target.hidden_states):
            loss = loss + functional.mse_loss(mine, its)
        for mine, its in zip(output.attentions, target.attentions):
            loss = loss + functional.mse_loss(mine, its)
        return loss

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.setting.autocast():
            loss = self.loss()
        loss.backward()
        clip_grad_norm_(self.student.parameters(), CLIP)
        self.optimizer.step()


class StageLoop:
    """Steps of a stage by its own LightningModule: its losses, and its optimizer.

    compiled: as a long stage on a GPU.  recorded: as CUDA graphs; None as `bitkd run` does, on a GPU.
    """

    def __init__(self, setting: Setting, arm: Arm, compiled: bool = False, recorded: bool | None = None) -> None:
        self.setting, self.batch = setting, setting.batch()
        source = setting.model(ATTENTION)
        shape = ShapeSpec(width=arm.width)
        student = build_student(source, shape, estimate_importance(source, [self.batch]) if arm.width < 1 else None)
        student = prepare(student, arm.quant).to(setting.device)
        if arm.split:
            split_ternary_(student)
        module_class: Any = kind_of(arm.kind).module_class
        self.module = module_class(student, setting.model(ATTENTION), optim=OPTIM, total_steps=1000).to(setting.device)
        self.module.train()
        if self.module.can_keep_logits:  # as `bitkd run` does
            with torch.no_grad(), setting.autocast():
                target = self.module.teacher(**model_inputs(self.batch, self.module.teacher))
            self.module.keep_logits(target.logits.float())
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        if compiled:
            compile_layers(self.module).use(True)
        recorded = setting.device == "cuda" if recorded is None else recorded
        self.losses = GraphedLosses(self.module, self.module.losses) if recorded else self.module.losses

    def loss(self) -> torch.Tensor:
        with self.setting.autocast():
            return self.losses(self.batch)[1].sum()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        clip_grad_norm_(self.module.parameters(), CLIP)
        self.optimizer.step()


def make_loop(setting: Setting, name: str, compiled: bool = False) -> PlainLoop | StageLoop:
    """plain, or a key of ARMS."""
    return PlainLoop(setting, compiled) if name == "plain" else StageLoop(setting, ARMS[name], compiled)


def take_turns(setting: Setting, steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in each round. What comes before (compiling, first allocations) is not counted."""
    many = 5 if setting.device == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(2 * many - 1):
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            began = setting.now()
            for _ in range(many):
                step()
            seconds[name].append((setting.now() - began) / many)
    return seconds


def ratio(mine: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, other))


def show(setting: Setting, seconds: dict[str, list[float]]) -> None:
    if setting.device == "cuda":
        times = ", ".join(f"{name} {statistics.median(all_) * 1e3:.1f} ms" for name, all_ in seconds.items())
        print(f"    {setting}: {times}", flush=True)


def steps(chosen: list[Setting], options: argparse.Namespace, compiled: bool = False) -> Iterator[Result]:
    """Each stage's step beside the plain loop's; in the part `compiled` on a GPU, by PyTorch's compiler."""
    for setting in chosen:
        if compiled and (setting.device == "cpu" or setting.precision == FP32):
            continue
        loops = {"plain": make_loop(setting, "plain").step}
        for name in ("plain", *ARMS) if setting.main else ("fp32", "w1a8"):
            if compiled and name != "fp32":
                loops[f"{name} compiled"] = make_loop(setting, name, compiled).step
            elif not compiled and name != "plain":
                loops[name] = make_loop(setting, name).step
        if setting.device == "cuda" and not compiled:
            loops["w1a8 kernels one by one"] = StageLoop(setting, ARMS["w1a8"], recorded=False).step
        # All arms compile the same functions: their graphs are more than the limit, which is meant for one model.
        limits = torch._dynamo.config.patch(recompile_limit=64)
        with own_stream(setting.device), limits, compilation(CACHE) if compiled else contextlib.nullcontext():
            seconds = take_turns(setting, loops, options.repeats)
        show(setting, seconds)
        for name, times in seconds.items():
            if name == "plain":
                continue
            key, _, how = name.partition(" ")
            title = f"{'plain loop' if key == 'plain' else ARMS[key].title}{', ' if how else ''}{how}"
            target = None
            if key in ARMS and setting.main and (compiled or setting.device == "cpu"):
                target = ARMS[key].gpu if setting.device == "cuda" else ARMS[key].cpu
            yield f"{setting}, {title}: of the plain loop", ratio(times, seconds["plain"]), "×", limit(target)


def limit(most: float | None) -> tuple[str, float] | None:
    return None if most is None else ("<=", most)


def sections(chosen: list[Setting], options: argparse.Namespace) -> Iterator[Result]:
    """Where the time of a W1A8 step goes; neither compiled nor recorded."""
    for setting in chosen:
        loop = StageLoop(setting, ARMS["w1a8"], recorded=False)
        loop.step()
        rounds = [section_seconds(loop) for _ in range(options.repeats)]
        for name in rounds[0]:
            share = statistics.median(times[name] / sum(times.values()) for times in rounds)
            yield f"{setting}, W1A8 step: {name}", 100 * share, "% of the step", None
        if setting.device == "cuda":
            yield f"{setting}, W1A8 step: kernels", kernels(loop.step), "", None


def section_seconds(loop: StageLoop) -> dict[str, float]:
    """Seconds of each part of one step."""
    setting, module = loop.setting, loop.module
    times: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = setting.now()
            result = work(*given, **named)
            times[name] = setting.now() - began
            return result

        return call

    teacher, student = module.teacher, module.student
    with (
        mock.patch.object(teacher, "forward", timed("teacher", teacher.forward)),
        mock.patch.object(student, "forward", timed("student", student.forward)),
    ):
        loop.optimizer.zero_grad()
        loss = timed("losses", loop.loss)()
    timed("backward", loss.backward)()
    timed("clipping", clip_grad_norm_)(module.parameters(), CLIP)
    timed("optimizer", loop.optimizer.step)()
    times["losses"] -= times["teacher"] + times["student"]
    return times


def kernels(step: Callable[[], None]) -> int:
    """Kernels that a step starts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def memory(chosen: list[Setting], options: argparse.Namespace) -> Iterator[Result]:
    """Peak of some steps, in processes of their own: of the GPU's memory, or of all that the process holds."""
    for setting in chosen:
        if setting.device == "cuda" and not setting.main:
            continue
        peaks = {name: alone("print_peak", setting, name) for name in ("plain", "w1a8")}
        if None in peaks.values():
            print("--  memory: left out, this system does not tell", flush=True)
            return
        print(f"    {setting}: plain loop {peaks['plain'] / 1024:.2f} GiB", flush=True)
        target = MEMORY.get((setting.device, setting.precision)) if setting.main else None
        yield f"{setting}, W1A8: peak memory", peaks["w1a8"] / 1024, "GiB", limit(target)


def compiling(chosen: list[Setting], options: argparse.Namespace) -> Iterator[Result]:
    """Seconds of the first step of a W1A8 stage above those of its third, in two processes with one cache on the disk."""
    for setting in chosen:
        if setting.device == "cpu" or not setting.main:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for title, most in (("first time", 40), ("from the cache on the disk", 8)):
                seconds = alone("print_compiling", setting, folder)
                yield f"{setting}, W1A8 compiled, {title}: seconds to compile", seconds, "s", ("<=", most)


def alone(function: str, setting: Setting, *given: Any) -> Any:
    """What a function of this file prints in a process of its own, as JSON."""
    words = json.dumps([vars(setting), *given])
    command = [
        sys.executable,
        "-c",
        f"import json, sys, training; training.{function}(*json.loads(sys.argv[1]))",
        words,
    ]
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(setting: dict[str, Any], name: str) -> None:
    """MiB at the peak of steps as `bitkd run` does them; null if the system does not tell."""
    made = Setting(**setting)
    torch.set_num_threads(made.threads)
    compiled = made.device == "cuda" and name != "plain"
    with own_stream(made.device), compilation(CACHE) if compiled else contextlib.nullcontext():
        loop = make_loop(made, name, compiled)
        for _ in range(RECORDED_AT - 1):
            loop.step()
        if (
            made.device == "cuda"
        ):  # what compiling took is no part of a step, but recording is: it allocates for all later steps
            reset_peak(made.device)
        loop.step()
    print(json.dumps(peak_mib(made.device)))


def print_compiling(setting: dict[str, Any], cache: str) -> None:
    made = Setting(**setting)
    with compilation(Path(cache)):
        loop = StageLoop(made, ARMS["w1a8"], compiled=True, recorded=False)
        moments = [made.now()]
        for _ in range(3):
            loop.step()
            moments.append(made.now())
    print(json.dumps((moments[1] - moments[0]) - (moments[3] - moments[2])))


class StepClock(pl.Callback):
    """Seconds from the start of one step of a fit to that of another, and how many steps are between them."""

    def __init__(self, now: Callable[[], float], first: int, last: int) -> None:
        self.now, self.bounds = now, (first, last)
        self.marks: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.bounds:
            self.marks[batch_idx] = self.now()

    @property
    def step_seconds(self) -> float:
        first, last = self.bounds
        return (self.marks[last] - self.marks[first]) / (last - first)


def fit(chosen: list[Setting], options: argparse.Namespace) -> Iterator[Result]:
    """A step in the fit of a 1-bit stage by `bitkd run` beside the same step by its module alone: what Lightning, our callbacks
    and the data cost."""
    for setting in chosen:
        if setting.device == "cpu" and setting.precision != FP32:
            continue
        count = 100 if setting.device == "cuda" else 2 * options.repeats + 2
        rows = [setting.length] * (count * setting.rows)
        with tempfile.TemporaryDirectory() as folder:
            write_model_and_rows(Path(folder), setting, rows)
            compiled = setting.device == "cuda"
            step = make_loop(setting, "w1a8", compiled).step
            with own_stream(setting.device), compilation(CACHE) if compiled else contextlib.nullcontext():
                alone = take_turns(setting, {"module": step}, 2 * options.repeats)["module"]
            clock = StepClock(setting.now, count // 5, count - 1)
            run_fit(Path(folder), setting, count, clock, compiled)
        inside, outside = clock.step_seconds, statistics.median(alone)
        if setting.device == "cuda":
            print(f"    {setting}: in the fit {inside * 1e3:.1f} ms, module alone {outside * 1e3:.1f} ms", flush=True)
        yield f"{setting}, W1A8 fit: a step above its module's", 100 * (inside / outside - 1), "%", ("<=", 10)


def mrpc(chosen: list[Setting], options: argparse.Namespace) -> Iterator[Result]:
    """A whole 1-bit stage by `bitkd run` on rows of MRPC's number and lengths: its seconds, validation included, by its steps."""
    count = 345
    for setting in chosen:
        if setting.device == "cpu" or setting.shape != "MiniLM-L6" or setting.precision == FP32:
            continue
        random, places = np.random.default_rng(0), np.linspace(0, 1, len(TOKENS["MRPC"]))
        lengths = np.interp(random.random(ROWS["MRPC"]), places, TOKENS["MRPC"]).astype(int).tolist()
        with tempfile.TemporaryDirectory() as folder:
            setting = replace(setting, length=128)
            write_model_and_rows(Path(folder), setting, lengths)
            for seed in (1, 2):  # what the first compiles, the second finds on the disk
                seconds = run_fit(Path(folder), setting, count, StepClock(setting.now, 50, count - 1), seed=seed)
                print(f"    {setting}, MRPC, run {seed}: {seconds / count * 1e3:.1f} ms a step", flush=True)
        title = f"{setting.shape} {setting.precision}, W1A8 stage on MRPC's lengths, warm"
        yield title, seconds / count * 1e3, "ms a step", ("<=", 15)


def write_model_and_rows(folder: Path, setting: Setting, lengths: list[int]) -> None:
    """A fine-tuned checkpoint of random weights, and MRPC's files with random words; lengths: tokens of the training rows."""
    tokenizer, words = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), id2label=LABELS, label2id={b: a for a, b in LABELS.items()})
    config.update(SHAPES[setting.shape])
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    (folder / "glue" / "MRPC").mkdir(parents=True)
    for name, rows in (("train", lengths), ("dev", lengths[:408])):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for number, length in enumerate(rows):
            drawn = [words[i] for i in random.integers(0, len(words), max(length - 3, 2))]
            half = len(drawn) // 2
            lines.append(f"{number % 2}\t{number}\t{number}\t{' '.join(drawn[:half])}\t{' '.join(drawn[half:])}")
        (folder / "glue" / "MRPC" / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def run_fit(
    folder: Path, setting: Setting, count: int, clock: StepClock, compiled: bool = False, seed: int = 1
) -> float:
    """Seconds that the record of a 1-bit stage of `count` steps tells; `clock` is one more callback of its Trainer.

    compiled: also where there are too few steps for `trainer.compile=auto`.
    """
    checkpoint = folder / "model"
    settings = [
        "task=mrpc",
        f"data.dir={folder / 'glue'}",
        f"model.pretrained={checkpoint}",
        f"stages.teacher.checkpoint={checkpoint}",
        f"data.max_length={setting.length}",
        f"train.batch_size={setting.rows}",
        f"train.max_steps={count}",
        "stages.single.max_steps=1",
        f"trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
        f"trainer.precision={'bf16-mixed' if setting.precision == BF16 else '32-true'}",
        f"trainer.compile={'true' if compiled else 'auto'}",
        f"run.dir={folder / 'runs'}",
        f"seed={seed}",
    ]

    def with_clock(*given: Any, callbacks: list[pl.Callback], **named: Any) -> pl.Trainer:
        return make_trainer(*given, callbacks=[*callbacks, clock], **named)

    silent: Any = type("Silent", (), {"print": staticmethod(lambda text: None)})
    with mock.patch("bitkd.pipeline.execute.make_trainer", with_clock):
        return bitkd.run("singlestage", *settings, console=silent).stages[-1].seconds


PARTS: dict[str, Callable[[list[Setting], argparse.Namespace], Iterator[Result]]] = {
    "steps": steps,
    "sections": sections,
    "memory": memory,
    "fit": fit,
    "mrpc": mrpc,
    "compiling": compiling,
    "compiled": functools.partial(steps, compiled=True),
}


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """One for each batch and precision. bf16 on a processor only where it has the instructions."""
    fast = options.device == "cuda" or bool({"avx512_bf16", "amx_bf16"} & set(cpu_features()))
    precisions = options.precision or ([BF16] if options.device == "cuda" else [FP32, BF16] if fast else [FP32])
    return [
        Setting(
            options.device,
            precision,
            shape,
            options.rows or rows,
            options.length or length,
            options.threads,
            main=not place and not options.rows and not options.length,
        )
        for place, (shape, rows, length) in enumerate(BATCHES[options.device])
        for precision in precisions
        if options.model in (None, shape)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How fast a training step is, beside a plain Hugging Face loop.")
    texts = (f"{name}: {(getattr(part, 'func', part).__doc__ or '').split('.')[0]}" for name, part in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{'; '.join(texts)}; all if none is given")
    parser.add_argument("--device", choices=BATCHES, default="cpu")
    parser.add_argument("--model", choices=SHAPES, help="only this one of the device's models")
    parser.add_argument("--precision", nargs="+", choices=[FP32, BF16], help="bf16 where it is fast, and FP32 on a CPU")
    parser.add_argument("--rows", type=int, help="of a batch; the targets are for 32")
    parser.add_argument("--length", type=int, help="tokens of a row")
    parser.add_argument("--repeats", type=int, help="rounds; 3 on a CPU, 7 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; with more than one, elapsed time is measured")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch finds no GPU here")
    options.repeats = options.repeats or (7 if options.device == "cuda" else 3)
    quieten()
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{describe_cpu()}, {options.threads} thread"
    print(f"{device}, torch {torch.__version__}", flush=True)
    for name, times in PEERS:
        print(f"    elsewhere: {name}: {times} times its plain loop (FP32, padded)", flush=True)
    chosen = settings_of(options)
    return report("training", [functools.partial(PARTS[name], chosen, options) for name in options.parts or PARTS])


if __name__ == "__main__":
    sys.exit(main())
