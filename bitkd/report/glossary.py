"""The words of a report: what its numbers mean, notes, captions."""

from bitkd.compare.comparison import Comparison
from bitkd.compare.forms import metric_meaning
from bitkd.compare.inference import LEVEL, MIN_SEEDS, POWER
from bitkd.compare.resampling import RESAMPLES
from bitkd.compare.retained import MARGIN_ERRORS
from bitkd.data.tasks import HOLDOUT
from bitkd.quant.table import FP32, weight_bits_of
from bitkd.report.tables import SIZE_RATIO

_CAPTIONS = {
    "size": "Score against the size of the final student: packed (solid) and on paper (hollow), joined by a line. Upright bars: "
    "± standard deviation, if there are several seeds.",
    "cost": "Score against the training cost of the whole chain; hollow: without General KD. Upright bars: ± standard "
    "deviation, if there are several seeds.",
    "speed": "Score against the speed of the final student as exported, in multiples of its teacher's (the table says how it "
    "was measured). Upright bars: ± standard deviation, if there are several seeds.",
    "curves": "Scores over the steps of the chain. A marker ends a stage: it is the dev score of the weights that the stage "
    "passes on (its best, or its last). Lines are the validations during a stage (thin: each seed), a small point if there "
    "was only one. Below: the stage that each arm is in.",
    "pipelines": "The pipelines, each stage with its metric and cost.",
}


def captions(comparison: Comparison) -> dict[str, str]:
    """The pictures of `bitkd.report.plots` and what they show, in the report's order."""
    return {name: text for name, text in _CAPTIONS.items() if name != "speed" or comparison.has_speed}


def glossary(comparison: Comparison) -> list[tuple[str, str]]:
    """Terms and their meanings, for this comparison."""
    dev = comparison.first.dev_set
    rows = len(comparison.first.final.predictions[dev].labels) if comparison.first.final.predictions else 0
    metric, baseline = comparison.metric_text, comparison.first.form
    meaning = metric_meaning(comparison.metric)
    found = [
        (
            "arm",
            "runs of one pipeline and of the same settings, budget included, under different seeds. Numbers are means over "
            "the seeds, ± the standard deviation (n − 1) if there are two seeds or more.",
        ),
        (
            metric,
            f"the task's primary metric on the dev set {dev} ({rows:,} rows), measured on the weights that a stage passes on. "
            "Larger is better; an error counts negatively, an undefined correlation as 0."
            + (f" {meaning}" if meaning else ""),
        ),
        (
            "verdict",
            "the outcome of a rule, for the difference that was named before the runs, from its interval for other rows and "
            "other seeds (of the mean over the study's tasks): better, all of it is above 0; worse, below 0; equal, within the "
            "margin; not worse, above minus the margin; undecided, anything else. A point is a hundredth of the metric.",
        ),
        (
            "teacher score retained",
            f"(student − {baseline.noun}) / (teacher − {baseline.noun}), of the means over seeds; {metric} of the "
            f"{baseline.noun} is {comparison.majority:.4f}, the score of {baseline.score_of}. "
            f"In brackets: the {LEVEL:.0%} interval of these models on other dev rows, by percentiles of {RESAMPLES:,} bootstrap "
            f"resamples of the rows, the same for students, teachers and {baseline.noun}. No value if the teacher's margin over "
            f"the {baseline.noun} is below {MARGIN_ERRORS} of its standard errors: such a ratio may be anything.",
        ),
        ("student / teacher", f"{metric} of the student / that of its teacher; the mean over seeds."),
        (
            "95 %, these models",
            f"the {LEVEL:.0%} interval of a difference between these very models on other dev rows: percentiles of {RESAMPLES:,} "
            "bootstrap resamples of the rows, the same for every run. It says nothing of other seeds.",
        ),
        (
            "95 %, other seeds",
            f"the {LEVEL:.0%} interval of a difference between the arms, for other dev rows and other seeds. Its variance is "
            "that of the rows and that of the seeds of both arms, less the part that both count (rows × seeds); Student's t with "
            f"degrees of freedom after Satterthwaite. Both arms need {MIN_SEEDS} seeds or more, which need not be the same ones. "
            "What all seeds share, such as a teacher or General KD, does not vary in it.",
        ),
        (
            "p, p by Holm",
            "the chance of a difference at least this large, in either direction, if the arms were equal; then corrected for the "
            "number of exploratory differences in the table: if all arms were equal, any “p by Holm” below 0.05 would occur in "
            "at most one of twenty such tables. A difference that was named before the runs is not corrected.",
        ),
        (
            "detectable",
            f"the true difference that a study with this variance and as many seeds finds with a chance of {POWER:.0%} "
            "(p < 0.05, without correction).",
        ),
        (
            "rows : seeds : both",
            "where the variance of a difference comes from: the choice of dev rows, the seeds, and rows × seeds (a row that one "
            "seed gets wrong and another right).",
        ),
        (
            "MiB on paper",
            "every weight at the student's bits, word embeddings at theirs: 32 with embedding_bits=32 (as papers count).",
        ),
        (
            "MiB packed",
            "counted: quantized matrices at their bits with FP32 scales, everything else in 16 bits; a model without "
            "quantized matrices at 32 bits.",
        ),
        (
            "MiB of the training state",
            "model.safetensors of the run's last artifact. It holds the FP32 weights that training continues from, so it is as "
            "large as an FP32 model and says nothing about the student's size. `bitkd export ARTIFACT OUT` writes the student "
            "itself.",
        ),
        (
            "encoder bits",
            "bits of the encoder's matrices, without embeddings. The pipelines are made so that their final students have equal "
            "encoder bits; their files need not be equally large.",
        ),
        (
            SIZE_RATIO,
            "the file of the first arm's final student in multiples of the second's: MiB exported if both were measured, else "
            "MiB packed. Within 5 % they count as equally large.",
        ),
        (
            "word tables",
            "word-embedding tables side by side: a split student has two, and both are counted in parameters and sizes.",
        ),
        (
            "cost",
            "of training, over all processes and resumptions: optimizer steps, examples seen (rows; of sentence "
            "similarity each text), their tokens without padding and with it, FLOP and time. The chain is every stage "
            "except the teacher and augmented rows, which pipelines share. General KD is done once for all tasks, so the "
            "cost is given with and without it. A dash, or no such column: older records do not say.",
        ),
        (
            "FLOP of products",
            "floating-point operations of matrix products, counted by torch.utils.flop_counter: of the student's forward and "
            "backward passes, of the teacher's forward passes, and of estimating the importance of heads and neurons for a "
            "narrower student. Not in it: elementwise work, quantizers, the optimizer, and validation.",
        ),
        (
            "training time, training alone",
            "by the clock of the first process, from a stage's first step to its last, and what must be computed before them "
            "(importance, kept logits of the teacher, compiling). “Training alone” is without the validations and the saving of "
            "checkpoints: the time in which the FLOP of products were spent. FLOP per step, time per step and s per TFLOP "
            "(seconds for 10¹² FLOP of products) are of training alone.",
        ),
        (
            "equal FLOP are not equal time",
            "work that is no product takes time and no FLOP of products. A split student has the most of it: it updates twice "
            "the weights of a student of its width, so its stages may take twice the time for each FLOP. Compare s per TFLOP "
            "before two arms of equal FLOP are called equally expensive.",
        ),
        (
            "chosen step, looks",
            "the step whose weights a stage passes on, under each seed: the best of so many validations on so many rows, or the "
            "last step. On the rows that chose, the score of the best is too high by chance, the more so the more validations "
            "there were.",
        ),
        (
            "stages, hyper-parameters",
            "how many stages the chain has, also those that do not train; how many settings the pipeline and the run set.",
        ),
    ]
    found += _exported_terms(comparison)
    if any(HOLDOUT in run.final.dev for run in comparison.runs):
        found.append(("hold-out", "learning curves show the score on training rows that were kept out of training."))
    return found


def _exported_terms(comparison: Comparison) -> list[tuple[str, str]]:
    """Terms of the table of exported students, as far as it has them."""
    measured = [arm.exported for arm in comparison.arms if arm.exported]
    found = []
    if measured:
        found.append(
            (
                "MiB counted, exported, teacher",
                "“MiB counted” is MiB packed. “MiB exported” is measured: model.safetensors of the final student (of the first "
                "seed) as `bitkd export --no-int8` writes it, all that is not quantized in fp16, header included. “MiB teacher” "
                "is the teacher's FP32 file, and “times smaller” is its size divided by that of the exported student. A student "
                "without low-bit weights is not packed: its own file is shown.",
            )
        )
    if any(exported.speeds for exported in measured):
        found.append(
            (
                "ms, teacher, faster",
                "latency, measured: milliseconds for one batch, such as 8×128: 8 texts of 128 tokens, none of them padding; for "
                "the exported student, loaded from its file, and for the teacher in FP32, as transformers runs it by default. "
                "They take turns on one thread. What counts is the processor's time, so other programs on the machine change "
                "little. Shown are medians; “faster” is how many times faster the student is: the median of the rounds' ratios, "
                "below 1 if it is slower. The times are those of the processor that is named below the table; compare the times "
                "of arms only if it is the same one.",
            )
        )
    return found


def notes(comparison: Comparison) -> list[str]:
    """Plain sentences under the headline table."""
    found = []
    teacher = comparison.teacher
    if teacher.mean is not None:
        found.append(
            f"Teacher: {comparison.metric_text} {teacher.mean:.4f}"
            + (f" (mean of {teacher.count} teachers)" if teacher.count > 1 else "")
            + f"; {comparison.first.form.always}: {comparison.majority:.4f}."
        )
    found += comparison.size_notes
    found += training_state(comparison)
    doubled = [arm.label for arm in comparison.arms if arm.first.final.word_tables > 1]
    if doubled:
        found.append(f"{', '.join(doubled)}: split students with two word-embedding tables, both counted in the sizes.")
    general = [arm.label for arm in comparison.arms if arm.has_general]
    if general:
        found.append(f"{', '.join(general)}: the cost includes General KD; the table of costs shows it without, too.")
    return found


def training_state(comparison: Comparison) -> list[str]:
    """A sentence about the large file of a low-bit student; none if there is no such student."""
    finals = [arm.first.final for arm in comparison.arms if weight_bits_of(arm.first.final.precision) < FP32]
    if not finals:
        return []
    largest = max(final.disk_mib for final in finals)
    return [
        f"The model.safetensors in a low-bit stage's artifact (here up to {largest:.4g} MiB) is its training state: the FP32 "
        "weights that training continues from. `bitkd export ARTIFACT OUT` writes the low-bit student itself."
    ]


def versions(comparison: Comparison) -> list[str]:
    """Versions and devices, all of them if stages differ."""
    lines = []
    names = sorted({name for run in comparison.runs for name in run.versions})
    for name in names:
        found = sorted({run.versions.get(name, "unknown") for run in comparison.runs})
        lines.append(f"{name} {', '.join(found)}")
    devices = sorted({device for arm in comparison.arms for device in arm.devices})
    return [*lines, f"trained on {'; '.join(devices) or 'nothing'}"]
