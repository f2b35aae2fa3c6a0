"""The HTML pages of server and node: one style, no script, and no resource from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from medopt.core.page_style import STYLE

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; img-src data:"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""For every answer that a browser may get."""
PAGE_HEADERS = HEADERS | {"Content-Security-Policy": _CONTENT_SECURITY_POLICY}
"""For a page: nothing but its own style and pictures in it."""


def page_template(package: str, name: str) -> Template:
    """A page's template, which gets `style`, out of a package's folder `templates`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = STYLE
    return environment.from_string((files(package) / "templates" / name).read_text(encoding="utf-8"))
