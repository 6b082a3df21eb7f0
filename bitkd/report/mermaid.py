"""A pipeline's graph as Mermaid text."""

from typing import Any

from bitkd.report.looks import look_of


def draw_graph(stages: list[dict[str, Any]]) -> str:
    """Mermaid text of a graph: solid arrows carry the student, dotted ones the teacher.

    stages: dicts with name, title, kind, inputs (role -> upstream) and bits.
    """
    lines = ["flowchart LR", "  pretrained([pre-trained BERT])"]
    for stage in stages:
        lines.append(f'  {stage["name"]}["{stage["title"]}"]')
    for stage in stages:
        for role, upstream in stage["inputs"].items():
            arrow = "-->" if role == "student" else "-. teaches .->"
            lines.append(f"  {upstream} {arrow} {stage['name']}")
    for stage in stages:
        lines.append(f"  style {stage['name']} fill:{look_of(stage['kind'], stage['bits']).colour},color:#111")
    return "\n".join(lines)
