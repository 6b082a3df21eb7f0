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
The tables show means, deviations, and differences between arms with a 95 %
bootstrap interval. Unfinished runs are refused, and so are runs of different
tasks, dev rows or labels. If teachers differ at one seed, every output begins
with a warning. A comparison.json gives the same tables and plots again
without the runs.

One final student of each arm is packed as `bitkd export` does, and its file and
its latency on this machine are shown beside the teacher's. That takes seconds,
and is kept in the runs' cache folder for the next time.
"""

SWEEP_HELP = """

The file is a sweep file of wandb; its trials run on this machine, without a
server, one after another. Run the same command again to restart: finished
trials are skipped unless data, model or code changed, interrupted ones are
resumed, failed ones are tried again. Settings apply to all trials.
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
        "the task's metrics of any checkpoint: an artifact, or one of Hugging Face",
        epilog=EVALUATE_SETTINGS_HELP,
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id")
    evaluate.add_argument("settings", **settings)
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
