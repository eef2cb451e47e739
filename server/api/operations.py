"""For those who run it: alive, ready, metrics. None of them says anything about a customer."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nearcast.errors import Unavailable
from server.api.auth import Allow, Behind, Key
from server.api.bodies import answer
from server.api.problems import RETRY_AFTER_S

router = APIRouter(tags=["operations"])

_METRICS_KEY = Allow("metrics")


@router.get("/health")
async def health() -> Response:
    """This process answers."""
    return answer({"status": "ok"})


@router.get("/ready")
async def ready(services: Behind) -> Response:
    """Every component works: 200; else 503, naming those that don't."""
    try:
        components = await services.ready()
    except Unavailable:
        components = {"server": "unavailable"}
    if all(state == "ok" for state in components.values()):
        return answer({"status": "ok", "components": components})
    response = answer({"status": "unavailable", "components": components}, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@router.get("/metrics")
async def metrics(request: Request, services: Behind, key: Key) -> Response:
    """Counters in the Prometheus text format. Open, unless a key of role "metrics" is configured: then with one."""
    if services.keys.has("metrics"):
        await _METRICS_KEY(request, services, key)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
