"""A pipeline's graph as Mermaid text."""

import re
from typing import Any

from bitkd.report.looks import look_of
from bitkd.stages.kinds import kind_of


def draw_graph(stages: list[dict[str, Any]]) -> str:
    """Mermaid text of a graph: solid arrows carry the student, dotted ones the teacher.

    stages: dicts with name, title, kind, inputs (role -> upstream) and bits.
    """
    lines = ["flowchart LR", "  pretrained([pre-trained BERT])"]
    for stage in stages:
        lines.append(f'  {stage["name"]}["{_escaped(stage["title"])}"]')
    for stage in stages:
        for role, upstream in stage["inputs"].items():
            arrow = "-->" if role == "student" else "-. teaches .->"
            lines.append(f"  {upstream} {arrow} {stage['name']}")
    for stage in stages:
        look = look_of(kind_of(stage["kind"]), stage["bits"])
        lines.append(f"  style {stage['name']} fill:{look.colour},color:#111")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text for a box, with Mermaid's codes for the characters that it would read."""
    return re.sub(r"[\"#&<>%`\n]", lambda found: f"#{ord(found[0])};", text)
