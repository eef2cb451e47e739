"""The JSON Schema for editors: what is right is not underlined, what is wrong is, and each field says what it means."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.world import Budget, Cap, CouponRules, Discount, Promotion, What, When, Who
from offers.schema import schema_of
from offers.worldfile import WorldFile

DOCS = Path(__file__).parents[2] / "docs"
WORLD = schema_of(WorldFile, "World")
PROMOTION = schema_of(Promotion, "Promotion")
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """What an editor would underline: as much of JSON Schema 2020-12 as the schemas use, read from its specification.

    Raises `AssertionError` for a keyword that it doesn't know.
    """
    told = {"$schema", "$defs", "title", "description", "default", "discriminator"}
    for keyword, wanted in schema.items():
        match keyword:
            case "$ref":
                yield from faults(value, root["$defs"][wanted.rpartition("/")[2]], root, at)
            case "anyOf":
                if all(list(faults(value, each, root, at)) for each in wanted):
                    yield f"{at}: none of them"
            case "type":
                if wanted in ("integer", "number"):
                    numbers = (int,) if wanted == "integer" else (int, float)
                    fits = isinstance(value, numbers) and not isinstance(value, bool)
                else:
                    fits = isinstance(value, _TYPES[wanted])
                if not fits:
                    yield f"{at}: type"
            case "enum":
                if value not in wanted:
                    yield f"{at}: enum"
            case "const":
                if value != wanted:
                    yield f"{at}: const"
            case "required":
                yield from (f"{at}.{name}: missing" for name in wanted if isinstance(value, dict) and name not in value)
            case "properties":
                for name, item in value.items() if isinstance(value, dict) else ():
                    if name in wanted:
                        yield from faults(item, wanted[name], root, f"{at}.{name}")
            case "additionalProperties":
                for name, item in value.items() if isinstance(value, dict) else ():
                    if name not in schema.get("properties", {}):
                        if wanted is False:
                            yield f"{at}.{name}: unknown"
                        else:
                            yield from faults(item, wanted, root, f"{at}.{name}")
            case "propertyNames":
                for name in value if isinstance(value, dict) else ():
                    yield from faults(name, wanted, root, f"{at} key")
            case "prefixItems" | "items" if isinstance(value, list):
                known = schema.get("prefixItems", [])
                if keyword == "prefixItems":
                    pairs = list(zip(value, known, strict=False))
                else:
                    pairs = [(item, wanted) for item in value[len(known) :] if wanted is not False]
                for number, (item, each) in enumerate(pairs):
                    yield from faults(item, each, root, f"{at}[{number}]")
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    over = value - wanted
                    bad = {"minimum": over < 0, "maximum": over > 0, "exclusiveMinimum": over <= 0}
                    if bad.get(keyword, over >= 0):
                        yield f"{at}: {keyword}"
            case "minLength" | "maxLength" | "minItems" | "maxItems":
                if isinstance(value, str if keyword.endswith("Length") else list):
                    over = len(value) - wanted
                    if (over < 0) if keyword.startswith("min") else (over > 0):
                        yield f"{at}: {keyword}"
            case "pattern":
                # In ECMAScript `\Z` is the letter, and `$` without flags the very end.
                assert r"\Z" not in wanted
                if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", wanted), value):
                    yield f"{at}: pattern"
            case "format" | "prefixItems" | "items":
                pass
            case _:
                assert keyword in told, keyword


@pytest.mark.parametrize("name", ["shop.yaml", "vienna.yaml"])
def test_the_examples_are_right(name: str) -> None:
    """The documentation's world files validate."""
    document = yaml.safe_load((DOCS / "examples" / name).read_text())
    # A date that YAML reads as such is text to an editor.
    assert list(faults(msgspec.json.decode(msgspec.json.encode(document)), WORLD, WORLD)) == []


GOOD: dict[str, Any] = {"id": "a", "name": "A", "trigger": "enter", "words": {"en": {"title": "Hi"}}}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"trigger": "walkpast"}, "$.trigger: enum"),
        ({"id": 5}, "$.id: type"),
        ({"id": "a\n"}, "$.id: pattern"),
        ({"wat": 1}, "$.wat: unknown"),
        ({"budgets": [{"pieces": -1}]}, "$.budgets[0].pieces: none of them"),
        ({"caps": [{"count": 0, "period": "day"}]}, "$.caps[0].count: minimum"),
        ({"what": {"instead": "nowhere"}}, "$.what.instead: none of them"),
        ({"deadline_s": 0}, "$.deadline_s: exclusiveMinimum"),
        ({"channels": []}, "$.channels: minItems"),
        ({"experiment": {"name": "x", "from": 0}}, "$.experiment: none of them"),
    ],
)
def test_what_is_wrong_is_underlined(change: dict[str, Any], fault: str) -> None:
    """One fault, at its place."""
    assert list(faults(GOOD | change, PROMOTION, PROMOTION)) == [fault]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(GOOD | change, Promotion)


_NAMES = st.lists(st.sampled_from(["a", "b", "ä ö"]), max_size=2)
_CAPS = st.builds(Cap, count=st.integers(1, 9), period=st.sampled_from(["day", "week", "month"]), tags=_NAMES)
_PROMOTIONS = st.builds(
    Promotion,
    id=st.sampled_from(["a", "a/b"]),
    name=st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=9),
    trigger=st.sampled_from(["enter", "order_ready", "qr_scan"]),
    words=st.just(msgspec.convert({"en": {"title": "Hi"}}, dict[str, Any])),
    tags=_NAMES,
    caps=st.lists(_CAPS, max_size=2),
    budgets=st.lists(
        st.builds(Budget, pieces=st.integers(0, 10**9), per=st.sampled_from(["store", "customer"])), max_size=1
    ),
    coupon=st.builds(CouponRules, kind=st.sampled_from(["unique", "none"]), group=st.none() | st.just("g")),
    who=st.builds(Who, groups=_NAMES, min_points=st.none() | st.integers(0, 9), in_cart=st.booleans()),
    what=st.builds(What, skus=_NAMES, discount=st.none() | st.just(Discount(percent=10, most_cents=500))),
    when=st.builds(When, zone=st.sampled_from(["store", "customer", "Europe/Vienna"])),
    fall_back_s=st.none() | st.floats(0.5, 100),
)


@settings(max_examples=30)
@given(_PROMOTIONS)
def test_what_is_accepted_is_not_underlined(promotion: Promotion) -> None:
    """Whatever nearcast takes, the schema takes, written out in full."""
    assert list(faults(msgspec.json.decode(msgspec.json.encode(promotion)), PROMOTION, PROMOTION)) == []


def test_every_field_of_a_promotion_says_what_it_means() -> None:
    """From the comments in the vocabulary itself; a trigger is told with what it means; no field is forgotten."""
    for name in ("Promotion", "Who", "Where", "What", "When", "Cap", "Budget", "CouponRules", "Experiment", "Words"):
        definition = PROMOTION["$defs"][name]
        silent = [field for field, about in definition["properties"].items() if "description" not in about]
        assert (name, silent) == (name, [])
        assert definition["description"]
    assert (
        "walk_past (came into the vicinity of a store)"
        in PROMOTION["$defs"]["Promotion"]["properties"]["trigger"]["description"]
    )
    # In a file it is `from` and `to`.
    assert set(PROMOTION["$defs"]["Experiment"]["properties"]) == {"name", "from", "to"}
