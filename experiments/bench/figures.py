"""How a suite's figures are told and kept."""

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Result = tuple[str, float, str, tuple[str, float] | None]
"""Name, value, unit, and the target: ">=", "<=" or "<" and a number; None if there is none."""

HOLDS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def report(suite: str, measures: Iterable[Callable[[], Iterator[Result]]]) -> int:
    """Print each figure as it is measured, and write all of them into build/bench/SUITE.json. Returns an exit code."""
    figures = []
    for measure in measures:
        for name, value, unit, target in measure():
            figure = {"name": name, "value": round(value, 4), "unit": unit, "target": None, "ok": None}
            said, mark = "", "   "
            if target is not None:
                sign, number = target
                figure |= {"target": f"{sign} {number:g}", "ok": HOLDS[sign](value, number)}
                said, mark = f" (target {sign} {number:g})", "ok " if figure["ok"] else "NOT"
            figures.append(figure)
            print(f"{mark} {name}: {value:.4g} {unit}{said}", flush=True)
    folder = Path("build/bench")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0
