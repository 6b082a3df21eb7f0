"""A rich console for plain text: nothing is cut, lines are wrapped between words, user text is never read as markup."""

import os
import textwrap
from typing import Any

from rich.console import Console as RichConsole

UNLIMITED = 10_000
"""Width of an output that is no terminal: no line is wrapped, no column is left out."""


class Console(RichConsole):
    """Prints text in the terminal's width. An output that is no terminal has no width, unless COLUMNS gives one."""

    def __init__(self, stderr: bool = False) -> None:
        # No markup: user text such as [/data/wiki.txt] would be read as a closing tag.
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNLIMITED

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print a text, wrapped between words, or anything that rich renders. A word is never broken: paths stay whole."""
        if all(isinstance(item, str) for item in objects):
            lines = " ".join(objects).splitlines() or [""]
            wrapped = (
                textwrap.wrap(line, self.width, break_long_words=False, break_on_hyphens=False) for line in lines
            )
            super().print("\n".join("\n".join(parts) for parts in wrapped), soft_wrap=True, **settings)
        else:
            super().print(*objects, **settings)
