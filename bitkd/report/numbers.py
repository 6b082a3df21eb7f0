"""Numbers as text, for tables."""

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
