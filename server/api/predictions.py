"""What a customer will likely want next, over HTTP.

A customer's id may hold a slash, so the path takes the rest of it as the id.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from nearcast.ids import CustomerId, StoreId
from server.api.auth import Allow, Behind
from server.api.bodies import answer, checked_id

router = APIRouter(tags=["customers"])


@router.get("/v1/customers/{customer:path}/predictions", dependencies=[Depends(Allow("admin"))])
async def get_predictions(
    customer: str,
    services: Behind,
    top: Annotated[int, Query(ge=1, le=100, description="How many, at most.")] = 5,
    store: Annotated[str | None, Query(description="Id of a store: suggest what it has in stock.")] = None,
) -> Response:
    """What the customer will likely buy next: product segments with the probability of a purchase within seven days.

    As of all that is folded by now, so it changes with every purchase. Only segments that the customer has bought from
    and that the world still has; of somebody who opted out of everything, none. With a store each comes with a thing
    of it that is in stock there: wished for, looked at, on display, or any, and not in the cart. And by which of the
    channels that they consent to the customer will most likely react to a message.
    """
    known = CustomerId(checked_id(customer, "path.customer"))
    at = StoreId(checked_id(store, "query.store")) if store is not None else None
    return answer(await services.predictions(known, at, top))
