"""HTML answers: templates of the `pages` folder under a policy that allows nothing but themselves.

Everything is escaped; styles and scripts run by a nonce made for each answer; nothing is loaded from anywhere.
"""

import secrets
from pathlib import Path

from fastapi import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from channels.templates import money

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("pages")), autoescape=True, undefined=StrictUndefined
)
_PAGES.filters["money"] = money


def page(template: str, status: int = 200, headers: dict[str, str] | None = None, **values: object) -> Response:
    """A template of the folder as an answer."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    html = _PAGES.get_template(template).render(nonce=nonce, **values)
    return Response(
        html, status, {"Content-Security-Policy": policy, **(headers or {})}, media_type="text/html; charset=utf-8"
    )
