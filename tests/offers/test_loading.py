"""World files: what is accepted, and that every mistake is found and named with its line and field."""

import json
from datetime import date
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import InputError
from nearcast.world import Circle, Experiment, Fence, OpenHours, SpecialDay, Trigger, Window
from offers import documents
from offers.loading import (
    MAX_TOLD,
    InvalidWorldFile,
    WorldFile,
    check_references,
    load_world,
)
from offers.worldfile import remarks
from tests.offers.examples import PRODUCTS, STORE, promotion
from tests.offers.mistakes import EVERYTHING, MISTAKES, TAKEN

WRONG_IN_MANY_WAYS = """\
stores:
  - {id: s1, name: S, lat: 1, lng: 2, time_zone: Mars}
  - {id: s2, name: S, lat: 91, lng: 2}
promotions:
  - id: p1
    name: n
    trigger: walkpast
    words: {en: {title: t}}
  - id: p2
    name: n
    trigger: enter
    what:
      discount:
        percent: 250
    words:
      en: {title: t}
  - id: p3
    name: n
    trigger: enter
    words:
      en:
        title: t
      de:
        title: 5
  - id: p4
    name: n
    trigger: enter
    where:
      store: [s1]
    words: {en: {title: t}}
  - id: 4711
  - id: p6
    name: n
  - id: p7
    name: n
    trigger: enter
    channels: []
    words: {en: {title: ""}}
  - id: p8
    name: n
    trigger: enter
    words: {no: {title: t}}
fences:
  - id: f
    store: s1
    kind: store
    geometry: {type: Square}
  - {id: g, store: s, kind: store, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: g, store: s, kind: store, geometry: {type: Circle, center: [1, .nan], radius_m: 5}}
  - {id: g, store: s, kind: store, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: h, store: s, kind: product, geometry: {type: Polygon, coordinates: [[[1, 2], [3]]]}}
stock: 5
shops: []
"""

FOUND = f"""\
w.yaml:2 stores[0]: `time_zone` 'Mars' is not an IANA time zone
w.yaml:3 stores[1].lat: must be at most 90
w.yaml:7 promotions[0].trigger: 'walkpast' is not one of {", ".join(sorted(get_args(Trigger)))}
w.yaml:14 promotions[1].what.discount.percent: must be at most 100
w.yaml:24 promotions[2].words.de.title: must be text, not a whole number; put it in quotes
w.yaml:29 promotions[3].where: `store` is not a field here; the fields are stores, fences, kinds
w.yaml:31 promotions[4].id: must be text, not a whole number; put it in quotes
w.yaml:32 promotions[5]: `trigger` is missing
w.yaml:37 promotions[6].channels: must not be empty
w.yaml:42 promotions[7].words: a name in here must be text, not true or false; put it in quotes
w.yaml:47 fences[0].geometry.type: 'Square' is not one of Circle, Polygon, MultiPolygon, LineString
w.yaml:49 fences[2].geometry.center[1]: must be at least -90
w.yaml:50 fences[3]: 'g' is already defined in line 48
w.yaml:51 fences[4].geometry.coordinates[0][1]: must have exactly 2 entries
w.yaml:52 stock: must be a list
w.yaml:53: `shops` is not a section; the sections are stores, fences, products, promotions, stock"""


def test_every_mistake_is_named_with_line_and_field() -> None:
    """One mistake for each wrong entry, in the order of the file, in plain words."""
    with pytest.raises(InvalidWorldFile) as caught:
        load_world(WRONG_IN_MANY_WAYS, "w.yaml")
    assert str(caught.value) == FOUND
    assert caught.value.reason == "invalid_world_file"
    assert caught.value.where == "w.yaml:2 stores[0]"
    assert len(caught.value.problems) == len(FOUND.splitlines())


def test_one_mistake_reads_like_any_input_error() -> None:
    """A single mistake: the field is in `where`, the words alone in `detail`."""
    with pytest.raises(InputError) as caught:
        load_world("products:\n  - sku: a\n    name: A\n    segment: s\n    price_cents: -1\n", "p.yaml")
    assert (caught.value.where, caught.value.detail) == ("p.yaml:5 products[0].price_cents", "must be at least 0")
    assert str(caught.value) == "p.yaml:5 products[0].price_cents: must be at least 0"


def test_a_file_that_is_wrong_all_over_tells_the_first_mistakes() -> None:
    """The text is bounded, the list of problems is whole."""
    with pytest.raises(InvalidWorldFile) as caught:
        load_world("stock:\n" + "  - 5\n" * 1000, "s.yaml")
    assert len(caught.value.problems) == 1000
    assert str(caught.value).splitlines()[-1] == f"and {1000 - MAX_TOLD} more"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("stores: [\n", 2, "did not find expected"),
        ("stores:\n  - a: b: c\n", 2, "mapping values are not allowed"),
        ("stores: []\nfences: &x []\nstock: *x\n", 2, "anchors and aliases"),
        ("stores: &a [*a]", 1, "anchors and aliases"),
        ("stores:\n  - !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("stores: []\n---\nfences: []\n", 2, "found another document"),
        ("stock:\n  - {store: 2025-13-45}\n", 1, "month must be in"),
        ("stores: []\n\x00", 2, "the character U+0000 is not allowed"),
        ("? [a]\n: b\n", 1, "unhashable key"),
        ("[" * 100_000, 1, "nested deeper than 32 levels"),
        ('{"stores":' * 100_000, 1, "nested deeper than 32 levels"),
        ("stores:\n" + "  - [" + "[" * 40 + "]" * 41, 2, "nested deeper than 32 levels"),
        ("stock:\n  5\n", 1, "must be a list"),
        ("- stores", 1, "a file is a set of sections"),
        ("5", 1, "a file is a set of sections"),
        ("stores: []\nstock: []\nstores: []\n", 3, "`stores` is given twice"),
        ('{"stores": [],\n "stores": []}', 2, "`stores` is given twice"),
        ('{"products": [\n {"sku": "a", "name": "\\uD83C", "segment": "b"}]}', 2, "half a character"),
        ('{"stores": [\n 1e999, ' + "9" * 5000 + "]}", 1, "integer string conversion"),
    ],
)
def test_what_is_no_world_file_at_all(text: str, line: int, words: str) -> None:
    """Broken, hostile or mistaken texts are refused with a line and a reason, never with a crash."""
    with pytest.raises(InvalidWorldFile) as caught:
        load_world(text, "bad.yaml")
    assert caught.value.where.split()[0] == f"bad.yaml:{line}"
    assert words in caught.value.detail


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "stores:\nstock: []\n"])
def test_nothing_is_a_valid_file(text: str) -> None:
    """An empty file, or one with empty sections, describes nothing."""
    assert load_world(text, "empty.yaml") == WorldFile()


FENCE = Fence(id="f", store="shop", kind="store", geometry=Circle(center=(16.0, 48.0), radius_m=50))
WORLD = WorldFile(stores=[STORE], fences=[FENCE], products=PRODUCTS, promotions=[promotion()])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"experiment": {"name": "words", "from": 0.5, "to": 0.5}}, "`to` is not above `from`"),
        ({"experiment": {"name": "words", "from": 0, "to": 1.5}}, "must be at most 1"),
        ({"experiment": {"name": "words", "starts": 0, "to": 1}}, "the fields are name, from, to"),
        ({"experiment": {"from": 0, "to": 1}}, "`name` is missing"),
        ({"holdout": -0.1}, "must be at least 0"),
        ({"holdout": 0.1, "kind": "assist"}, "`holdout` belongs to offers"),
        ({"cost_cents": -1}, "must be at least 0"),
    ],
)
def test_hold_outs_and_experiments_that_cannot_be(fields: dict[str, object], words: str) -> None:
    """Shares are from 0 to 1, an arm is not empty, and nobody is held out of an alert."""
    content = {"promotions": [msgspec.to_builtins(promotion()) | fields]}
    with pytest.raises(InvalidWorldFile, match=words):
        load_world(json.dumps(content), "w.json")


def test_an_arm_is_read_as_it_is_written() -> None:
    """`from` and `to` survive the way into the store and out again."""
    deal = promotion(experiment=Experiment(name="words", starts=0.25, ends=1.0), holdout=0.1, cost_cents=7)
    content = {"promotions": [msgspec.to_builtins(deal)]}
    assert content["promotions"][0]["experiment"] == {"name": "words", "from": 0.25, "to": 1.0}
    assert load_world(json.dumps(content), "w.json").promotions == [deal]


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_and_yaml_describe_the_same_world(indent: int | str | None) -> None:
    """The same content as JSON (also indented with tabs) and as YAML loads to the same world."""
    content = msgspec.to_builtins(WORLD)
    assert load_world(json.dumps(content, indent=indent), "w.json") == WORLD
    assert load_world(yaml.safe_dump(content), "w.yaml") == WORLD


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
def test_mistakes_in_json_have_lines_too(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is traced to its lines, past characters it escapes in two halves; with libyaml or without."""
    monkeypatch.setattr(documents, "_Loader", loader)
    text = json.dumps({"products": [{"sku": "\U0001f389", "name": "A", "segment": "s", "colour": "red"}]}, indent="\t")
    assert "\\ud83c" in text
    with pytest.raises(InvalidWorldFile) as caught:
        load_world(text, "w.json")
    assert caught.value.where == "w.json:7 products[0]"
    assert caught.value.detail.startswith("`colour` is not a field here")


# Not halves of characters, and not DEL, which JSON doesn't escape and YAML doesn't allow.
@given(title=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1, max_size=40))
def test_any_words_survive_json(title: str) -> None:
    """Whatever characters a title has, JSON's way of escaping them is understood."""
    content = {"promotions": [{"id": "p", "name": "n", "trigger": "enter", "words": {"en": {"title": title}}}]}
    assert load_world(json.dumps(content), "w.json").promotions[0].words["en"].title == title


@given(blank_lines=st.lists(st.integers(0, 3), min_size=4, max_size=4), wrong=st.integers(0, 3))
def test_line_numbers_follow_the_text(blank_lines: list[int], wrong: int) -> None:
    """Wherever the wrong entry stands, the line given is the line it is in."""
    lines = ["products:"]
    expected = 0
    for number, blank in enumerate(blank_lines):
        lines += ["  # a comment"] * blank
        lines += [f"  - sku: s{number}", "    name: N"]
        lines += ["    segment: [" if number == wrong else "    segment: x"] + ["    ]"] * (number == wrong)
        expected = next(at for at, line in enumerate(lines, 1) if "[" in line) if number == wrong else expected
    with pytest.raises(InvalidWorldFile) as caught:
        load_world("\n".join(lines), "w.yaml")
    assert caught.value.where == f"w.yaml:{expected} products[{wrong}].segment"


def test_references_that_lead_nowhere() -> None:
    """Each reference to a store, fence, product or segment that doesn't exist is one sentence."""
    text = """
stores: [{id: s, name: S, lat: 0, lng: 0}, {id: s2, name: S, lat: 0, lng: 0}]
fences:
  - {id: a, store: s9, kind: store, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: b, store: s, kind: shelf, parent: z, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: c, store: s2, kind: shelf, parent: b, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: d, store: s, kind: product, sku: x9, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: e, store: s, kind: store, parent: b, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
  - {id: f, store: s, kind: shelf, parent: b, geometry: {type: Circle, center: [1, 2], radius_m: 5}}
products: [{sku: x, name: X, segment: g, displays: [{store: s9, lat: 0, lng: 0}, {store: s, lat: 0, lng: 0, parent: b},
  {store: s2, lat: 0, lng: 0, parent: b}, {store: s, lat: 0, lng: 0, parent: z}]}]
promotions:
  - {id: p, name: P, trigger: enter, words: {en: {title: t}}, where: {stores: [s, s9], fences: [b, z]},
     what: {skus: [x, x9], segments: [g, g9]}}
stock: [{store: s9, sku: x9, quantity: 1}]
"""
    assert check_references(load_world(text, "w.yaml")) == [
        "fence 'a' names the store 's9', which does not exist",
        "fence 'b' names the parent 'z', which does not exist",
        "fence 'c' belongs to the store 's2', but its parent to 's'",
        "fence 'd' names the product 'x9', which does not exist",
        "fence 'e' is a store, which can't be in a shelf ('b')",
        "product 'x' names the store 's9', which does not exist",
        "product 'x' is on display in the store 's2', but its parent is in 's'",
        "product 'x' names the parent 'z', which does not exist",
        "promotion 'p' names the store 's9', which does not exist",
        "promotion 'p' names the fence 'z', which does not exist",
        "promotion 'p' names the product 'x9', which does not exist",
        "promotion 'p' names the segment 'g9', which does not exist",
        "stock of 'x9' at 's9' names the store 's9', which does not exist",
        "stock of 'x9' at 's9' names the product 'x9', which does not exist",
    ]
    assert check_references(WORLD) == []


@pytest.mark.parametrize(
    ("hours", "fence_hours", "noted"),
    [
        ([(0, 540, 1140)], [(0, 1139, 1200)], False),
        ([(0, 540, 1140)], [(0, 1140, 1200)], True),
        ([(0, 540, 1140)], [(1, 540, 1140)], True),
        ([(0, 540, 1140)], [(6, 1200, 541)], False),
        ([(0, 540, 1140)], [(6, 1200, 540)], True),
        ([(0, 540, 1140)], [], True),
        ([], [(0, 540, 1140)], True),
        ([(6, 0, 0)], [(6, 1439, 1440)], False),
        (None, [], False),
        ([(0, 540, 1140)], None, False),
    ],
)
def test_a_fence_that_is_never_in_use_is_noted(
    hours: list[tuple[int, int, int]] | None, fence_hours: list[tuple[int, int, int]] | None, noted: bool
) -> None:
    """Hours that never meet the store's are allowed, and pointed out; a special day could still bring them together."""

    def week(given: list[tuple[int, int, int]] | None) -> list[OpenHours] | None:
        return given if given is None else [OpenHours(*each) for each in given]

    store = msgspec.structs.replace(STORE, hours=week(hours))
    world = WorldFile(stores=[store], fences=[msgspec.structs.replace(FENCE, hours=week(fence_hours))])
    assert check_references(world) == []
    assert bool(remarks(world)) == noted
    special = msgspec.structs.replace(store, special_days=[SpecialDay(date(2026, 12, 24))])
    assert remarks(msgspec.structs.replace(world, stores=[special])) == []


def test_days_are_written_plainly() -> None:
    """In YAML a date needs no quotes and may have them; a wrong one is named with its line."""
    text = """\
stores:
  - id: s
    name: S
    lat: 1
    lng: 2
    special_days:
      - {date: 2026-12-24, windows: [{opens: 540, closes: 840}]}
      - {date: "2026-12-25"}
"""
    (store,) = load_world(text, "w.yaml").stores
    assert store.special_days == [SpecialDay(date(2026, 12, 24), [Window(540, 840)]), SpecialDay(date(2026, 12, 25))]
    with pytest.raises(InvalidWorldFile) as caught:
        load_world(text.replace('"2026-12-25"', '"25.12.2026"'), "w.yaml")
    assert str(caught.value) == "w.yaml:8 stores[0].special_days[1].date: must be a day of the calendar, as 2026-12-24"
    with pytest.raises(InvalidWorldFile, match=r"w.yaml:2 stores\[0\]: `special_days` has 2026-12-24 twice"):
        load_world(text.replace("2026-12-25", "2026-12-24"), "w.yaml")


def test_everything_that_a_promotion_can_have() -> None:
    """It is taken as it stands in the file."""
    assert load_world(yaml.safe_dump({"promotions": [EVERYTHING]}), "p.yaml").promotions == [TAKEN]


@pytest.mark.parametrize(("change", "field", "words"), MISTAKES)
def test_mistakes_in_it(change: dict[str, Any], field: str, words: str) -> None:
    """Each at its field, in plain words."""
    with pytest.raises(InvalidWorldFile) as caught:
        load_world(yaml.safe_dump({"promotions": [EVERYTHING | change]}), "p.yaml")
    (problem,) = caught.value.problems
    assert problem.detail.startswith(words)
    assert problem.where.split(" ")[1].startswith("promotions[0]" + (f".{field}" if field else ""))
