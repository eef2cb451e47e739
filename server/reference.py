"""Reference documentation made from the code, so that it can't drift from it."""

import json

from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from nearcast import metrics as declared
from nearcast.world import Promotion
from offers.schema import schema_of
from offers.worldfile import WorldFile
from server.settings import CONFIG_VARIABLE, PREFIX, Settings


def settings() -> str:
    """Every setting with its type, default and meaning, as Markdown."""
    rows = [
        "# Settings",
        "",
        f"Environment variables, or keys (in lower case, without `{PREFIX}`) of the TOML file that `{CONFIG_VARIABLE}`",
        "names; the environment wins. Lists and maps are JSON in the environment. Unknown keys stop the start.",
        "Made by `nearcast reference settings`.",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, PydanticUndefined, "", [], {}) else f"`{_plain(default)}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {_type(field.annotation)} | {shown} | {field.description} |")
    return "\n".join(rows)


def metrics() -> str:
    """Every metric with its kind, labels and meaning, as Markdown."""
    rows = [
        "# Metrics",
        "",
        "Prometheus text format at `GET /metrics`. Made by `nearcast reference metrics`.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in vars(declared).values():
        if isinstance(metric, Counter | Gauge | Histogram | declared.BulkHistogram):
            (described,) = metric.describe()
            name = described.name + ("_total" if isinstance(metric, Counter) else "")
            labels = ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))  # it has no public name
            rows.append(f"| `{name}` | {described.type} | {labels} | {described.documentation} |")
    return "\n".join(rows)


def promotions() -> str:
    """JSON Schema of a promotion."""
    return json.dumps(schema_of(Promotion, "A promotion of nearcast"), indent=2)


def world() -> str:
    """JSON Schema of a world file."""
    return json.dumps(schema_of(WorldFile, "A world file of nearcast"), indent=2)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return json.dumps([str(item) for item in value])
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: object) -> str:
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    text = text or str(annotation)
    for module in ("typing.", "pathlib._local.", "pathlib.", "pydantic.types.", "nearcast.world."):
        text = text.replace(module, "")
    return text.replace(SecretStr.__name__, "secret").replace(" | None", "").replace("|", "or")
