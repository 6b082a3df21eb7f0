"""The words of a report: what its numbers mean, notes, captions."""

from bitkd.compare.bootstrap import LEVEL, RESAMPLES
from bitkd.compare.comparison import Comparison
from bitkd.data.tasks import HOLDOUT

CAPTIONS = {
    "size": "Score against the size of the final student: packed (solid) and on paper (hollow), joined by a line. Upright bars: "
    "± standard deviation, if there are several seeds.",
    "cost": "Score against the training cost of the whole chain; hollow: without General KD. Upright bars: ± standard "
    "deviation, if there are several seeds.",
    "curves": "Scores over the steps of the chain. A marker is the end of a stage, measured on dev with the weights that it "
    "passes on (the best on the way, or the last); lines are "
    "the validations on the way (thin: each seed), a small point if there was only one. Below: which stage each arm is in.",
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
            f"{comparison.majority:.4f}: the constant prediction of the most frequent dev label (of a regression: the mean). "
            "No value if the teacher is not above it.",
        ),
        (
            "95 % interval",
            f"percentiles of {RESAMPLES:,} bootstrap resamples: of dev rows, the same rows for every run, and of seeds, as pairs "
            "if two arms share seeds (the difference is then over these alone). If only “rows” are resampled, there is one seed, "
            "or one that both arms have: the interval then holds for these very runs, and not for the pipelines. With few seeds "
            f"it is too narrow. Level: {LEVEL:.0%}, of each difference by itself.",
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
            "bits of the encoder's matrices alone, without embeddings, in which pipelines are made equal.",
        ),
        (
            "word tables",
            "word-embedding tables side by side: a split student has two, and both are counted in parameters and sizes.",
        ),
        (
            "cost",
            "of training: optimizer steps, examples seen, FLOP by torch.utils.flop_counter (the student's forward and "
            "backward passes, and the teacher's forward passes; of training alone), over all processes; training time by the "
            "clock of the first process from a stage's first step to its last, validations and checkpoints between them "
            "included, over all resumptions, on the device and processes that are named. The chain is every stage but the "
            "teacher and augmented rows, which pipelines share; General KD is on the corpus, made "
            "once for all tasks, and therefore counted in and out.",
        ),
        (
            "stages, hyper-parameters",
            "the chain's stages, those without training included; the settings that the pipeline's stages and the run set.",
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
