"""A pipeline drawn as boxes, in the colours of its states."""

from typing import Any

COLOURS = {
    "general": "#f5a623",
    "finetune": "#b8b8b8",
    "fp32": "#b18be0",
    "two": "#6fa8dc",
    "split": "#7cc47f",
    "one": "#e57373",
}


def draw_graph(stages: list[dict[str, Any]]) -> str:
    """Mermaid text of a graph: solid arrows carry the student, dotted ones the teacher.

    stages: dicts with name, title, kind, inputs (role -> upstream) and, where known, bits.
    """
    lines = ["flowchart LR", "  pretrained([pre-trained BERT])"]
    for stage in stages:
        lines.append(f'  {stage["name"]}["{stage["title"]}"]')
    for stage in stages:
        for role, upstream in stage["inputs"].items():
            arrow = "-->" if role == "student" else "-. teaches .->"
            lines.append(f"  {upstream} {arrow} {stage['name']}")
    for stage in stages:
        lines.append(f"  style {stage['name']} fill:{COLOURS[state_of(stage['kind'], stage['bits'])]},color:#111")
    return "\n".join(lines)


def state_of(kind: str, weight_bits: int) -> str:
    """Which of COLOURS a stage's student has after it."""
    if kind in ("general", "finetune", "split"):
        return kind
    return {1: "one", 2: "two"}.get(weight_bits, "fp32")
