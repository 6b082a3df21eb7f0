"""The words of a report: what its numbers mean, notes, captions."""

from bitkd.compare.bootstrap import LEVEL, RESAMPLES
from bitkd.compare.comparison import Comparison
from bitkd.data.tasks import HOLDOUT

CAPTIONS = {
    "size": "Score against the size of the final student: packed (solid) and on paper (hollow), joined by a line. Upright bars: "
    "± standard deviation, if there are several seeds.",
    "cost": "Score against the training cost of the whole chain; hollow: without General KD. Upright bars: ± standard "
    "deviation, if there are several seeds.",
    "curves": "Scores over the steps of the chain. A marker ends a stage: it is the dev score of the weights that the stage "
    "passes on (its best, or its last). Lines are the validations during a stage (thin: each seed), a small point if there "
    "was only one. Below: the stage that each arm is in.",
    "pipelines": "The pipelines, each stage with its metric and cost.",
}
"""The pictures of `bitkd.report.plots`, in the report's order."""


def glossary(comparison: Comparison) -> list[tuple[str, str]]:
    """Terms and their meanings, for this comparison."""
    dev = comparison.first.dev_set
    rows = len(comparison.first.final.predictions[dev].labels) if comparison.first.final.predictions else 0
    found = [
        (
            "arm",
            "runs of one pipeline and of the same settings, budget included, under different seeds. Numbers are means over "
            "the seeds, ± the standard deviation (n − 1) if there are two seeds or more.",
        ),
        (
            comparison.metric,
            f"the task's primary metric on the dev set {dev} ({rows:,} rows), measured on the weights that a stage passes on. "
            "Larger is better; an error counts negatively, an undefined correlation as 0.",
        ),
        (
            "teacher score retained",
            f"(student − majority) / (teacher − majority), seed by seed; {comparison.metric} of the majority is "
            f"{comparison.majority:.4f}, the score of always predicting the most frequent dev label (regression: the mean). "
            "No value if the teacher is not above it.",
        ),
        (
            "95 % interval",
            f"percentiles of {RESAMPLES:,} bootstrap resamples. Resampled are the dev rows, the same for every run, and the "
            "seeds: as pairs if two arms share seeds (the difference then uses only these). If only “rows” are resampled, there "
            "is one seed, or one shared seed: the interval then describes these runs, not the pipelines. With few seeds it is "
            f"too narrow. The level is {LEVEL:.0%} for each difference separately.",
        ),
        (
            "MiB on paper",
            "every weight at the student's bits, word embeddings at theirs (as papers count).",
        ),
        (
            "MiB packed",
            "quantized matrices at their bits with FP32 scales, everything else in 16 bits; a model without quantized "
            "matrices at 32 bits. “MiB of the file” is the weights' file of the run as it is, in FP32.",
        ),
        (
            "encoder bits",
            "bits of the encoder's matrices, without embeddings. Pipelines are compared at equal encoder bits.",
        ),
        (
            "word tables",
            "word-embedding tables side by side: a split student has two, and both are counted in parameters and sizes.",
        ),
        (
            "cost",
            "of training, over all processes: optimizer steps, examples seen, and FLOP by torch.utils.flop_counter (the "
            "student's forward and backward passes and the teacher's forward passes; validation does not count). Training "
            "time is taken by the clock of the first process, from a stage's first step to its last, with the validations "
            "and checkpoints between them, over all resumptions. The chain is every stage except the teacher and augmented "
            "rows, which pipelines share. General KD is done once for all tasks, so the cost is given with and without it.",
        ),
        (
            "stages, hyper-parameters",
            "how many stages the chain has, also those that do not train; how many settings the pipeline and the run set.",
        ),
    ]
    if any(HOLDOUT in run.final.dev for run in comparison.runs):
        found.append(("hold-out", "learning curves show the score on training rows that were kept out of training."))
    return found


def notes(comparison: Comparison) -> list[str]:
    """Plain sentences under the headline table."""
    found = []
    teacher = comparison.teacher
    if teacher.mean is not None:
        found.append(
            f"Teacher: {comparison.metric} {teacher.mean:.4f}"
            + (f" (mean of {teacher.count} teachers)" if teacher.count > 1 else "")
            + f"; always the most frequent label: {comparison.majority:.4f}."
        )
    doubled = [arm.label for arm in comparison.arms if arm.first.final.word_tables > 1]
    if doubled:
        found.append(f"{', '.join(doubled)}: split students with two word-embedding tables, both counted in the sizes.")
    general = [arm.label for arm in comparison.arms if arm.has_general]
    if general:
        found.append(f"{', '.join(general)}: the cost includes General KD; the table of costs shows it without, too.")
    return found


def versions(comparison: Comparison) -> list[str]:
    """Versions and devices, all of them if stages differ."""
    lines = []
    names = sorted({name for run in comparison.runs for name in run.versions})
    for name in names:
        found = sorted({run.versions.get(name, "unknown") for run in comparison.runs})
        lines.append(f"{name} {', '.join(found)}")
    devices = sorted({device for arm in comparison.arms for device in arm.devices})
    return [*lines, f"trained on {'; '.join(devices) or 'nothing'}"]
