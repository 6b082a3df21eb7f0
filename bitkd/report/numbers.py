"""Numbers as text, for tables."""

from bitkd.compare.arms import Mean

DASH = "–"
"""A cell without a value."""


def time_text(seconds: float) -> str:
    """45 s, 12.5 min or 3.0 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def p_text(p: float | None) -> str:
    """A p value, with one more digit around 0.05."""
    if p is None:
        return DASH
    if p < 0.0005:
        return "< 0.001"
    return f"{p:.4f}" if 0.01 <= p < 0.1 else f"{p:.3f}"


def mean_text(value: Mean, digits: int = 4) -> str:
    """0.8123 ± 0.0045, or a dash if there is no value."""
    if value.mean is None:
        return DASH
    return f"{round(value.mean, digits) + 0.0:.{digits}f}" + (
        "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    )


def signed(value: float) -> str:
    """+0.0123 or −0.0123."""
    return minus(f"{round(value, 4) + 0.0:+.4f}")


def minus(number: str) -> str:
    """A number with the sign of print."""
    return number.replace("-", "−")


def size_text(mib: float) -> str:
    """A size in four digits."""
    return f"{mib:.4g}"


def si(value: float) -> str:
    """A count with a prefix: 1.53 T."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"
