"""For mkdocstrings: the >>> lines of a docstring are an example, with or without a heading above them."""

from __future__ import annotations

from typing import Any

import griffe


class DoctestExamples(griffe.Extension):
    """Puts `Examples:` above doctest lines that have no heading, so that they are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object before it is parsed."""
        if obj.docstring is None:
            return
        text, marker, rest = obj.docstring.value.partition("\n>>> ")
        if marker:
            lines = f">>> {rest}".splitlines()
            obj.docstring.value = "\n".join([text, "", "Examples:", *(f"    {line}" for line in lines)])
