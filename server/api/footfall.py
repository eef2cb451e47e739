"""Footfall over HTTP: how many people are where in a store, and visits by hour, both k-anonymous. Names nobody."""

import csv
import io
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from nearcast.ids import FenceId, StoreId
from server.api.auth import Allow, Behind
from server.api.bodies import answer, checked_id
from server.footfall import Asked, History, Row

router = APIRouter(tags=["footfall"])


@router.get("/v1/stores/{store:path}/footfall", dependencies=[Depends(Allow("staff"))])
async def get_footfall(store: str, services: Behind, products: bool = False) -> Response:
    """How many people are in each fence of a store now; in those of products' displays only with `products=true`.

    A count below k (NEARCAST_FOOTFALL_K), zero included, is withheld: `people` is null and `withheld` says why. Any
    other is the next lower multiple of k.
    """
    return answer(await services.footfall(_store(store), products=products))


@router.get("/v1/stores/{store:path}/footfall/history", dependencies=[Depends(Allow("staff"))])
async def get_history(
    store: str,
    request: Request,
    services: Behind,
    first: Annotated[date | None, Query(alias="from", description="First day, by the store's clock.")] = None,
    last: Annotated[date | None, Query(alias="to", description="Last day; without any, the last seven.")] = None,
    fence: Annotated[str | None, Query(description="Id of one fence, also of one that is gone.")] = None,
) -> Response:
    """Visits by fence and by the hour of the store's clock in which they began, and their mean stay in seconds.

    Withheld and rounded like the live counts. As CSV with `Accept: text/csv`.
    """
    one = FenceId(checked_id(fence, "query.fence")) if fence is not None else None
    history = await services.footfall_history(_store(store), Asked(first=first, last=last, fence=one))
    if "text/csv" in request.headers.get("accept", ""):
        return Response(_csv(history), media_type="text/csv")
    return answer(history)


def _store(value: str) -> StoreId:
    return StoreId(checked_id(value, "path.store"))


def _csv(history: History) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\r\n")
    columns = Row.__struct_fields__
    rows.writerow(columns)
    rows.writerows([getattr(row, column) for column in columns] for row in history.hours)
    return text.getvalue()
