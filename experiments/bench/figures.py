"""How a suite's figures are told and kept."""

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Result = tuple[str, float, str, tuple[str, float]]
"""Name, value, unit, and the target: ">=", "<=" or "<" and a number."""

HOLDS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def report(suite: str, measures: Iterable[Callable[[], Iterator[Result]]]) -> int:
    """Print each figure as it is measured, and write all of them into build/bench/SUITE.json. Returns an exit code."""
    figures = []
    for measure in measures:
        for name, value, unit, (sign, target) in measure():
            ok = HOLDS[sign](value, target)
            figures.append(
                {"name": name, "value": round(value, 4), "unit": unit, "target": f"{sign} {target:g}", "ok": ok}
            )
            print(f"{'ok ' if ok else 'NOT'} {name}: {value:.4g} {unit} (target {sign} {target:g})", flush=True)
    folder = Path("build/bench")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0
