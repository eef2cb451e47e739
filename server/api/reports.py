"""Reports over HTTP: what became of promotions, and a page that shows it. Names nobody.

The page itself is no secret: it asks for an API key and gets the figures with that. In demo mode it needs none.
"""

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import FileResponse, RedirectResponse

from nearcast.errors import NotFound
from nearcast.ids import PromotionId
from server.api.auth import Allow, Behind
from server.api.bodies import answer, checked_id
from server.reports import Asked

router = APIRouter(tags=["reports"])
#: In demo mode only.
demo_router = APIRouter(tags=["demo"])

FILES = ("reports.js", "charts.js", "dom.js", "reports.css", "style.css", "icon.svg")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

First = Annotated[date | None, Query(alias="from", description="First day, by UTC.")]
Last = Annotated[date | None, Query(alias="to", description="Last day; without any, the last four weeks.")]


@router.get("/v1/promotions/report", dependencies=[Depends(Allow("reports"))])
async def get_reports(services: Behind, first: First = None, last: Last = None) -> Response:
    """What became of the offers of each promotion that were made on some days, 92 at most: messages by stage,
    redemptions and their revenue, attributed purchases, and lift against the hold-out with its 95 % interval.
    """
    return answer(await services.promotion_reports(Asked(first=first, last=last)))


@router.get("/v1/promotions/{promotion:path}/report", dependencies=[Depends(Allow("reports"))])
async def get_report(promotion: str, services: Behind, first: First = None, last: Last = None) -> Response:
    """The same of one promotion, also one that is gone; with its figures by day, and why messages were given up."""
    known = PromotionId(checked_id(promotion, "path.promotion"))
    return answer(await services.promotion_report(known, Asked(first=first, last=last)))


@router.get("/reports", include_in_schema=False)
async def to_page() -> Response:
    return RedirectResponse("/reports/")


@router.get("/reports/", include_in_schema=False)
async def show_page(services: Behind) -> Response:
    return _file(services, "reports.html")


@router.get("/reports/{name}", include_in_schema=False)
async def get_file(name: str, services: Behind) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise NotFound("not_found", "there is no such file")
    return _file(services, name)


@demo_router.get("/demo/reports", include_in_schema=False)
async def get_demo_reports(services: Behind, first: First = None, last: Last = None) -> Response:
    """The reports without a key."""
    return answer(await services.promotion_reports(Asked(first=first, last=last)))


@demo_router.get("/demo/reports/{promotion:path}", include_in_schema=False)
async def get_demo_report(promotion: str, services: Behind, first: First = None, last: Last = None) -> Response:
    """A report without a key."""
    known = PromotionId(checked_id(promotion, "path.promotion"))
    return answer(await services.promotion_report(known, Asked(first=first, last=last)))


def _file(services: Behind, name: str) -> Response:
    return FileResponse(services.web_root / name, headers={"Content-Security-Policy": _PAGE_POLICY})
