"""The real sizes of final students, and what a comparison at equal sizes takes."""

from bitkd.compare.arms import Arm
from bitkd.compare.runs import Run
from bitkd.quant.table import FP32, WEIGHTS, weight_bits_of
from bitkd.store.records import MIB

EQUAL = 0.05
"""Files whose sizes differ by at most this share of the larger one count as equally large."""

MOST_NAMED = 3
"""Differences at equal sizes that a sentence names; of more, it gives the number."""

IN_FILE = {FP32: 16}
"""Bits of a weight in a packed file, of those widths that are kept otherwise (see bitkd.models.size)."""


def file_sizes(first: Arm, second: Arm) -> tuple[float, float, str]:
    """The sizes of two final students in MiB, and what they are: `exported` or `packed`.

    They are those of the files as `bitkd export` writes them, if both were measured; else both are counted (MiB packed).
    """
    ours, theirs = (arm.exported.file_mib if arm.exported else None for arm in (first, second))
    if ours and theirs:
        return ours, theirs, "exported"
    return first.first.final.packed_mib, second.first.final.packed_mib, "packed"


def size_ratio(first: Arm, second: Arm) -> float:
    """The size of the first arm's final student in multiples of the second's."""
    ours, theirs, _ = file_sizes(first, second)
    return ours / theirs


def are_equal(ratio: float) -> bool:
    """Whether sizes of this ratio count as equal, whichever is the larger one."""
    return min(ratio, 1 / ratio) >= 1 - EQUAL


def size_notes(pairs: list[tuple[Arm, Arm]]) -> list[str]:
    """Sentences about arms that are compared: whose sizes differ, whose are equal, and how to get equal ones.

    None if all are equally large.
    """
    unequal = [pair for pair in pairs if not are_equal(size_ratio(*pair))]
    if not unequal:
        return []
    equal = [f"{first.label} − {second.label}" for first, second in pairs if are_equal(size_ratio(first, second))]
    within = f"to within {100 * EQUAL:.0f} %"
    if not equal:
        sentence = f"No two are of equal real size, {within}."
    elif len(equal) > MOST_NAMED:
        sentence = f"The other {len(equal)} differences are at equal real sizes, {within}."
    else:
        sentence = f"At equal real sizes, {within}: {'; '.join(equal)}."
    found = [f"{'; '.join(_compared(*pair) for pair in unequal)}.", sentence]
    remedies = [_remedy(*(pair if size_ratio(*pair) < 1 else pair[::-1])) for pair in unequal]
    return found + [text for text in dict.fromkeys(remedies) if text]


def _compared(first: Arm, second: Arm) -> str:
    ours, theirs, what = file_sizes(first, second)
    bits = [arm.first.final.encoder_bits for arm in (first, second)]
    return (
        f"{first.label} is {ours / theirs:.3g} times as large as {second.label} ({ours:.4g} and {theirs:.4g} MiB {what})"
        + (", though their encoder bits are equal" if bits[0] == bits[1] else "")
    )


def _remedy(small: Arm, large: Arm) -> str:
    """The width of the smaller student's word embeddings that makes it as large as the other; empty if there is none."""
    run, goal = small.first, file_sizes(large, small)[0]
    weights = word_embeddings(run, [run, *large.runs])
    final = run.final
    bits = run.settings.get(f"stages.{final.name}.quant.embedding_bits") or weight_bits_of(final.precision)
    if weights is None or final.word_tables > 1 or bits == FP32:  # a split student takes no other width
        return ""
    sizes = {
        width: file_sizes(small, large)[0] + weights * (IN_FILE.get(width, width) - bits) / 8 / MIB
        for width in (*WEIGHTS, FP32)
    }
    width = min(sizes, key=lambda width: abs(sizes[width] / goal - 1))
    if not are_equal(sizes[width] / goal):
        return ""
    return (
        f"For an equal size, run {small.label} again with embedding_bits={width}: about {sizes[width]:.3g} MiB, as the sizes "
        f"before and after a split tell."
    )


def word_embeddings(run: Run, others: list[Run]) -> int | None:
    """About how many weights the word embeddings of a run's students have; None if no record tells.

    others: runs that may tell, if they are of the same pre-trained model and hidden size: a split doubles the word embeddings
    and the encoder's matrices (and some biases, one in a thousand), so its parameters grow by both.
    """
    for other in others:
        same = ("content of model", "student.hidden_size")
        if any(run.settings.get(name) != other.settings.get(name) for name in same):
            continue
        stages = {stage.name: stage for stage in other.stages}
        for stage in other.stages:
            before = stages.get(stage.upstream.get("student", ""))
            if before and stage.word_tables == before.word_tables + 1:
                matrices = before.encoder_bits // weight_bits_of(before.precision)
                return stage.parameters - before.parameters - matrices
    return None
