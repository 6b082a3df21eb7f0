"""The command line. It imports nothing heavy, so that --help, --version and wrong arguments are answered at once."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bitkd import __version__
from bitkd.errors import InputError

BROKEN_PIPE = 141
"""Exit code if nobody reads the output any more, as shells report SIGPIPE."""

SETTINGS_HELP = """\
settings are key=value, in any order:
  task=NAME pipeline=NAME model=NAME trainer=NAME  a file of conf/, or the path
                                                   of a YAML file
  stages.NODE.max_steps|epochs|lr|teacher|…=VALUE  one stage of the pipeline
  train.epochs|max_steps|batch_size|lr|…=VALUE     the default of all stages
  student.layers=[1,3,5] student.width=0.5         the student's shape
  model.pretrained=ID_OR_FOLDER data.dir=FOLDER data.corpus=[FILE,…]
  trainer.devices=2 trainer.precision=bf16-mixed logger=wandb seed=1
  run.dir=runs run.name=NAME
`bitkd config task=NAME pipeline=NAME` prints every key with its value.

exit codes: 0 done, 1 a failure while working, 2 bad input (nothing was
started). A run that is asked to stop saves and exits with 75 (SIGTERM, SIGUSR1)
or 130 (Ctrl-C): run the same command again to resume.
"""

PLAN_HELP = """

states: done (in the store: skipped), partial (interrupted: resumed), stale
(finished with other settings or inputs: computed again), todo.
"""

AUGMENT_HELP = """

The rows are kept in the artifact store; `bitkd run …
task.augmentation.enabled=true` with the same settings uses them.
"""

STORE_HELP = """

gc deletes artifacts and checkpoints that no run uses. A run uses the stages
of its current configuration, the artifacts its folder links to, and artifacts
its settings point to. A deleted run folder uses nothing. Artifacts of running
jobs are never deleted.
"""

COMPARE_HELP = """

Runs of one pipeline with the same settings and different seeds are one arm.
The tables show means, deviations, and differences between arms with 95 %
intervals: of these models on other dev rows, and, from three seeds in both arms,
for other rows and other seeds (Student's t).

If the runs name a study (study.primary= and the other settings under study=),
the output begins with a verdict on its question, over all its tasks; all other
differences are exploratory. Without a study, runs of different tasks are
refused. Unfinished runs are refused too, and so are different dev rows or labels
of one task. Warnings follow, such as on different teachers at one seed. A
comparison.json gives the same tables and plots again without the runs.

One final student of each arm is packed as `bitkd export` does, and its file and
its latency on this machine are shown beside the teacher's. That takes seconds,
and is kept in the runs' cache folder for the next time.
"""

POWER_HELP = """

RECORDS are finished runs, or records of earlier comparisons, as `bitkd compare`
takes them. Of several tasks, the mean difference is planned. Both arms need two
seeds or more. The table has the chance to find a true difference of the margin,
by seeds per arm and dev rows. It is also the chance to show that an equal arm
is not worse by the margin; the chance to show that it is equal to within the
margin is in a column of its own. Above the table: what the seeds at hand share,
which is in no number. Below it: the seeds for a chance of 80 %, or seeds and
rows if no number of seeds is enough; the smallest difference that unlimited
seeds show; and how rough these numbers are.
"""

THROUGHPUT_HELP = """

RUNs are finished runs of the pipelines that are to train for equal time, short
ones, on the device that is meant, with nothing else at work there. The file
holds the seconds per step of each stage, for these models, rows, lengths,
batches and trainer settings. With it, budget.seconds= gives each stage its
steps, on any machine.
"""

SWEEP_HELP = """

The file is a sweep file of wandb; its trials run on this machine, without a
server, one after another. Run the same command again to restart: finished
trials are skipped unless data, model or code changed, interrupted ones are
resumed, failed ones are tried again. Settings apply to all trials.
"""

EVALUATE_HELP = """

The rows are the task's dev sets; or those of FILE, or of standard input (-): a
table with the task's columns of texts and labels, as in the task's own files
(.tsv, .csv, .jsonl, .parquet; standard input is tab-separated, see --format).
"""

EVALUATE_SETTINGS_HELP = """\
settings:
  data.dir=FOLDER            the task's files; without it they are loaded from
                             the hub
  task=NAME                  the dev sets and metrics; an artifact knows its own
                             task, a plain checkpoint needs one
  data.max_length=128        tokens of a row; default: what an artifact was
                             trained with
  data.eval_batch_size=64 trainer.accelerator=gpu
  trainer.precision=bf16-mixed
"""

PREDICT_HELP = """

FILE is a table with the task's text columns by name (.tsv, .csv, .jsonl,
.parquet; other columns are not read), or a .txt file with a text in each line.
- is standard input: a text in each line (two, separated by a tab, for tasks of
pairs), or a tab-separated table if its first line has the names of the columns;
see --format. Predictions come in the rows' order, while the rows are read, as a
tab-separated table: index of the row from 0, label, probability of every label.
"""

PREDICT_SETTINGS_HELP = """\
settings, all optional:
  data.max_length=128        tokens of a row; default: what an artifact was
                             trained with
  data.eval_batch_size=64    rows of a batch
  trainer.accelerator=gpu trainer.precision=bf16-mixed
  task=NAME                  for a plain checkpoint, whose columns and order of
                             labels are not recorded
  split=NAME data.dir=FOLDER a test set of the task (with --out): writes a
                             submission file for GLUE
"""


BENCHMARK_HELP = """

FOLDER is what `bitkd export` wrote (packed, unpacked, onnx), an artifact, or a
plain Hugging Face checkpoint. Beside them run stock models of random weights
with the configuration of the first FOLDER: FP32 eager and SDPA, bf16 SDPA where
the processor has it, onnxruntime's dynamic int8 where it is installed.
All take turns, round by round; with one thread, processor time is counted, so
that other work on the machine disturbs least.
"""

EXPORT_HELP = """

ARTIFACT is a finished stage of a run, or any folder of bitkd.save_student.
packed: weights at their bits in model.safetensors; bitkd loads and runs it.
unpacked: a plain Hugging Face checkpoint in FP32, which needs no bitkd.
onnx: a model for onnxruntime. OUT is a new folder; it gets the tokenizer, a
model card and a record of the task too. A table says where every byte goes.
"""

EXPORT_SETTINGS_HELP = """\
settings, all optional:
  data.dir=FOLDER            the task's files. With them the dev metric is
                             measured, and positions and pooler of packed and
                             onnx go to 8 bits if it moves by less than 0.1
                             point
  task=NAME                  the same with rows from the hub, or of another task
  data.max_length=128        tokens of a row that is measured; default: what the
                             artifact was trained with
  data.eval_batch_size=64
  trainer.accelerator=gpu    measure there (onnx: always on the CPU)
"""

PUSH_HELP = """

FOLDER is what `bitkd export` wrote; its checksums are verified first. Only the
files that export wrote are uploaded. In the code of the uploaded model card,
REPO stands in place of FOLDER. The token is that of `hf auth login`, or
of HF_TOKEN.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitkd",
        description="From a fine-tuned BERT to a 1-bit BERT by knowledge distillation, along two pipelines.",
    )
    parser.add_argument("--version", action="version", version=f"bitkd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, more: str = "", epilog: str | None = SETTINGS_HELP) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}{more}",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="print JSON for machines")
        return command

    settings: dict[str, Any] = {"nargs": "*", "default": [], "metavar": "key=value", "help": "settings, see below"}
    add("run", "run a pipeline: finished stages are skipped, a killed stage resumes").add_argument(
        "settings", **settings
    )

    plan = add("plan", "print each stage, its inputs and its state; run nothing", PLAN_HELP)
    plan.add_argument("settings", **settings)
    plan.add_argument("--mermaid", action="store_true", help="print the graph as a Mermaid picture")

    augment = add("augment", "make the augmented rows of a task and show some of them", AUGMENT_HELP)
    augment.add_argument("settings", **settings)

    evaluate = add(
        "evaluate",
        "the task's metrics of any checkpoint, on its dev sets or on rows of one's own",
        EVALUATE_HELP,
        epilog=EVALUATE_SETTINGS_HELP,
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id")
    evaluate.add_argument(
        "settings", **(settings | {"metavar": "FILE|-|key=value", "help": "rows with labels, and settings"})
    )
    evaluate.add_argument(
        "--format", choices=["tsv", "csv", "jsonl", "parquet"], help="of FILE or -, whatever its name"
    )
    evaluate.add_argument("--labels", help="the checkpoint's label names in its order, comma-separated, if it has none")

    predict = add("predict", "labels and probabilities of texts, of a file of rows, or of a test set", PREDICT_HELP)
    predict.epilog = PREDICT_SETTINGS_HELP
    predict.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id")
    predict.add_argument("settings", **(settings | {"metavar": "FILE|-|key=value", "help": "rows, and settings"}))
    predict.add_argument("--text", action="append", default=[], help="a text; may be given several times")
    predict.add_argument("--text-pair", action="append", help="the second text of each --text, for tasks of pairs")
    predict.add_argument(
        "--format", choices=["tsv", "csv", "jsonl", "parquet"], help="of FILE or -, whatever its name: a table"
    )
    predict.add_argument(
        "--skip-malformed", action="store_true", help="leave out rows that cannot be read, and count them"
    )
    predict.add_argument(
        "--out", metavar="FILE", help="write there: .tsv, .csv or .jsonl (with split=: the submission)"
    )
    predict.add_argument("--labels", help="the checkpoint's label names in its order, comma-separated, if it has none")

    compare = add("compare", "compare finished runs, aggregated over seeds", COMPARE_HELP, epilog=None)
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder <run.dir>/<task>/<run.name>, or an earlier comparison.json"
    )
    compare.add_argument(
        "--no-latency", action="store_true", help="do not time the final students; their files are measured"
    )
    compare.add_argument(
        "--measure-again", action="store_true", help="measure files and latencies anew, not from the runs' cache"
    )
    compare.add_argument(
        "--out", metavar="DIR", help="also write index.html, report.md, comparison.csv, comparison.json and plots there"
    )

    power = add("power", "how many seeds and dev rows a next study needs", POWER_HELP, epilog=None)
    power.add_argument(
        "records", nargs="+", metavar="RECORD", help="run folder, or an earlier comparison.json (or its folder)"
    )
    power.add_argument(
        "--primary",
        metavar="FIRST,SECOND",
        help="the pipelines of the difference (default: those of the runs' study, else multistage,singlestage)",
    )
    power.add_argument(
        "--margin", type=float, metavar="POINTS", help="the difference to find (default: the study's, else 1)"
    )

    throughput = add(
        "throughput", "how long a step of each stage took, for a budget in seconds", THROUGHPUT_HELP, epilog=None
    )
    throughput.add_argument("runs", nargs="+", metavar="RUN", help="run folder <run.dir>/<task>/<run.name>")
    throughput.add_argument("--out", metavar="FILE", help="also write the file for budget.throughput=")
    throughput.add_argument(
        "--device", metavar="NAME", help="what to call the device (default: as the runs recorded it)"
    )

    export = add("export", "write a student as a folder to use and to share", EXPORT_HELP)
    export.epilog = EXPORT_SETTINGS_HELP
    export.add_argument("artifact", metavar="ARTIFACT", help="folder of a finished student")
    export.add_argument("out", metavar="OUT", help="folder to write; it must not exist, or be empty")
    export.add_argument("settings", **settings)
    export.add_argument("--format", choices=["packed", "unpacked", "onnx"], default="packed", help="default: packed")
    export.add_argument(
        "--ternary-bits",
        choices=["2", "1.6"],
        help="bits of a ternary weight on disk (default: 2; 1.6: five in a byte)",
    )
    export.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        help="positions and pooler at 8 bits, or in fp16 (default: 8 if the metric allows it)",
    )
    export.add_argument("--license", metavar="ID", help="license to name in the model card, such as apache-2.0")
    export.add_argument("--base-model", metavar="ID", help="hub id of the base model, to name in the model card")

    push = add("push", "upload an exported folder to the Hugging Face hub", PUSH_HELP, epilog=None)
    push.add_argument("folder", metavar="FOLDER", help="folder that `bitkd export` wrote")
    push.add_argument("repo", metavar="REPO", help="id of the repository: NAME or OWNER/NAME; made if it is absent")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to; made if it is absent")

    store = add("store", "list the artifact store, verify its checksums, or delete what no run uses", STORE_HELP)
    store.add_argument("action", choices=["list", "verify", "gc"])
    store.add_argument("settings", **(settings | {"help": "run.dir=FOLDER, or run.store=FOLDER (default: runs/store)"}))
    store.add_argument(
        "--older-than", type=float, metavar="DAYS", help="gc: only entries not written for this many days"
    )
    store.add_argument(
        "--max-size", type=float, metavar="GB", help="gc: the oldest first, until the store is this small"
    )
    store.add_argument(
        "--needed", action="store_true", help="gc: also what finished runs use (they would compute it again)"
    )
    store.add_argument("--dry-run", action="store_true", help="gc: only show what would be deleted")

    sweep = add("sweep", "run the trials of a wandb sweep file", SWEEP_HELP)
    sweep.add_argument("file", metavar="FILE", help="such as experiments/sweeps/arms.yaml")
    sweep.add_argument("settings", **settings)
    sweep.add_argument("--shards", default="1/1", metavar="i/n", help="only every n-th trial, starting with the i-th")
    sweep.add_argument("--dry-run", action="store_true", help="check everything and show the trials; run nothing")

    benchmark = add("benchmark", "how fast models are on this machine, beside FP32, bf16 and int8", BENCHMARK_HELP)
    benchmark.epilog = None
    benchmark.add_argument("folders", nargs="+", metavar="FOLDER", help="a model: a folder or hub id")
    benchmark.add_argument(
        "--shapes",
        metavar="ROWSxTOKENS,…",
        help="of a batch (default: 1x32,8x128,32x128, shorter where a model reads less)",
    )
    benchmark.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor (default: 1)")
    benchmark.add_argument(
        "--seconds", type=float, default=10.0, help="for a shape, at least three rounds (default: 10)"
    )
    benchmark.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    benchmark.add_argument(
        "--compiled", action="store_true", help="with --device cuda: also bf16 by torch.compile, which takes minutes"
    )
    benchmark.add_argument("--no-memory", action="store_true", help="do not measure load time and memory")

    add("config", "print the resolved configuration").add_argument("settings", **settings)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse ends a list of settings at the first option; those after it belong to the list too.
    if any(word.startswith("-") and word != "-" for word in rest) or (rest and not hasattr(arguments, "settings")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.settings = [*arguments.settings, *rest]
    return arguments


def _take_care_of_processes() -> Callable[[], None]:
    """Handle signals and a launcher that exits, before anything heavy is imported: both can happen at any moment.

    Returns a function that restores the earlier signal handlers.
    """
    from bitkd.processes.signals import exit_on_signal, exit_with_parent

    restore = exit_on_signal()
    if "LOCAL_RANK" in os.environ:  # set by torchrun, and by Lightning for the processes that it starts
        exit_with_parent()
    return restore


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a failure while working, 2 bad input, 75 or 130 asked to stop."""
    arguments = _parse(argv)
    from bitkd.processes.libraries import set_environment

    set_environment()
    restore = _take_care_of_processes() if arguments.command in ("run", "augment", "sweep") else None
    try:
        from bitkd.commands import find_command

        code = find_command(arguments.command)(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        from bitkd.commands.output import print_error

        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the output, such as head, has enough of it
        # What is still in the buffer goes nowhere, so that Python does not report the pipe again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    finally:
        if restore:
            restore()
