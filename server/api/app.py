"""The HTTP API put together: routes, errors and the boundary around them.

Everything behind it is one `Services` object. The app holds no state of its own but rate buckets and the demo's scene.
"""

from fastapi import FastAPI

from nearcast.events import MAX_BODY_BYTES
from server.api import (
    callbacks,
    catalogue,
    channels,
    customers,
    demo,
    description,
    events,
    footfall,
    models,
    operations,
    predictions,
    problems,
    reader_pages,
    reports,
    tills,
    trips,
)
from server.api.boundary import Boundary
from server.api.keyring import Buckets
from server.api.services import Services


def create_app(services: Services) -> FastAPI:
    """The API in front of `services`, as an ASGI application."""
    app = FastAPI(
        title="nearcast",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # It would record exception messages and paths, which hold personal data and tokens.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.services = services
    app.state.buckets = Buckets(services.limits.rate, services.clock)
    routed = (
        events, catalogue, predictions, customers, channels, tills, trips, callbacks, reader_pages, footfall, reports,
        models, operations, description,
    )  # fmt: skip
    for module in routed:
        app.include_router(module.router)
    if services.demo:
        app.include_router(demo.router)
        app.include_router(reports.demo_router)
        demo.mount_page(app, services)
    problems.install(app)
    app.state.openapi = description.describe(app)
    big = dict.fromkeys(("/v1/catalogue", "/v1/fences", "/v1/demo/scene"), services.limits.catalogue_bytes)
    big["/v1/models"] = models.UPLOAD_BYTES
    app.add_middleware(Boundary, clock=services.clock, limit=MAX_BODY_BYTES, limits=big)
    return app
