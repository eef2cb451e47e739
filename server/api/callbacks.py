"""Providers call back: what became of an SMS.

Two proofs are asked for: our own signed link in the path, which says what message this is about, and the provider's
signature over URL and form. Unknown statuses are acknowledged and ignored, or the provider would repeat them.
"""

from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response

from channels.sms import status_of_callback, verify_twilio_signature
from nearcast.errors import Forbidden, InputError, NotFound
from nearcast.ids import DecisionId, message_id
from server.api.auth import Behind

router = APIRouter(tags=["callbacks"])

_MAX_FIELDS = 100


@router.post("/v1/callbacks/sms/{token}", status_code=204)
async def sms_status(token: str, request: Request, services: Behind) -> Response:
    """Status callback of the SMS provider (Twilio's form and signature)."""
    if not services.sms_auth_token:
        raise NotFound("no_such_route", "no SMS provider is configured")
    link = services.links.verify("sms_status", token, services.clock.now_ms())
    form = _form(await request.body())
    url = f"{services.public_url}{request.url.path}"
    signature = request.headers.get("X-Twilio-Signature", "")
    if not verify_twilio_signature(url, form, services.sms_auth_token, signature):
        raise Forbidden("bad_signature", "the provider's signature does not match")
    status = status_of_callback(form)
    if status is not None:
        decision = DecisionId(link.subject)
        # The provider's own code only; its text may hold the number.
        reason = form.get("ErrorCode", "")[:16]
        await services.receipt(link.customer, message_id(decision, "customer"), decision, status, "sms", reason)
    return Response(status_code=204)


def _form(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except (UnicodeDecodeError, ValueError):
        raise InputError("malformed_form", "the body is not a form of URL-encoded fields") from None
