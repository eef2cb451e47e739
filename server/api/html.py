"""HTML answers: templates of the `pages` folder under a policy that allows nothing but themselves.

Everything is escaped; styles and scripts run by a nonce made for each answer; nothing is loaded from anywhere. Only a
page that `calls_back` may send anything, and to its own host alone.
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


def page(
    template: str,
    status: int = 200,
    headers: dict[str, str] | None = None,
    *,
    calls_back: bool = False,
    **values: object,
) -> Response:
    """A template of the folder as an answer."""
    nonce = secrets.token_urlsafe(16)
    calls = "connect-src 'self'; " if calls_back else ""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        f"{calls}form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    html = _PAGES.get_template(template).render(nonce=nonce, **values)
    return Response(
        html, status, {"Content-Security-Policy": policy, **(headers or {})}, media_type="text/html; charset=utf-8"
    )
