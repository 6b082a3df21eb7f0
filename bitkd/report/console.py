"""A rich console for plain text: nothing is cut, lines are wrapped between words, user text is never read as markup."""

import os
import textwrap
from typing import Any

from rich.console import Console as RichConsole

UNLIMITED = 10_000
"""Width of an output that is no terminal: no line is wrapped, no column is left out."""


class Console(RichConsole):
    """Prints text in the terminal's width. Tables have no width in an output that is no terminal, unless COLUMNS gives one."""

    def __init__(self, stderr: bool = False, **settings: Any) -> None:
        # No markup: user text such as [/data/wiki.txt] would be read as a closing tag.
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **settings)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNLIMITED

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print a text, or anything that rich renders.

        In a terminal, text is wrapped between words. A word is never broken: paths stay whole. Elsewhere a line stays a line.
        """
        if all(isinstance(item, str) for item in objects):
            lines = " ".join(objects).splitlines() or [""]
            if not self.is_terminal:
                super().print("\n".join(lines), soft_wrap=True, **settings)
                return
            wrapped = (
                textwrap.wrap(line, self.width, break_long_words=False, break_on_hyphens=False) for line in lines
            )
            super().print("\n".join("\n".join(parts) for parts in wrapped), soft_wrap=True, **settings)
        else:
            super().print(*objects, **settings)
