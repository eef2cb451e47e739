"""`nearcast promotions` as far as it reads files, and what it makes of a server's refusals.

With a running server it is tried in `tests/system/test_replay.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from server.cli import main
from tests.clients.web import Reply, recording_server

DOCS = Path(__file__).parents[2] / "docs"
SHOP = str(DOCS / "examples" / "shop.yaml")

WRONG = """\
promotions:
  - id: a
    name: A
    trigger: walk_past
    where:
      stores: [graben, nowhere]
    what:
      discount: {percent: 10, amount_cents: 5}
    words: {en: {title: Hi}}
  - id: b
    name: B
    trigger: enter
    caps:
      - {count: 1}
    budgets: [{per: store}]
    words: {en: {title: Hi}}
"""
ODD = """\
promotions:
  - id: cart-nearby
    name: A
    trigger: walk_past
    where:
      stores:
        - graben
        - nowhere
    fall_back_s: 400
    words:
      en:
        title: "{{ produkt }}"
  - id: second
    name: B
    trigger: enter
    words: {en: {title: Hi, body: "%s"}}
"""


ALL = """\
stores: [{id: graben, name: Graben, lat: 48.2, lng: 16.37}]
products: [{sku: "4711", name: Beans, segment: coffee}]
promotions:
  - id: all
    name: Everything
    trigger: dwell
    tags: [loud]
    who:
      groups: [a, b]
      loyalty: [gold]
      bought: [coffee]
      no_purchase_within_s: 2592000
      attributes: {city: [Wien]}
      min_points: 100
      consents: [sms]
    where: {stores: [graben], kinds: [store]}
    what:
      skus: ["4711"]
      segments: [tea]
      discount: {percent: 15, most_cents: 500}
      instead: elsewhere
      within_m: 500
    when:
      starts_ms: 1735689600000
      ends_ms: 1767225600000
      hours: [{weekday: 0, opens: 540, closes: 1080}]
      zone: customer
    value_cents: 300
    cost_cents: 7
    holdout: 0.1
    experiment: {name: words, from: 0.0, to: 0.5}
    deadline_s: 60
    coupon_valid_s: 3600
    coupon: {exclusive: true, group: g, this_store: true, min_purchase_cents: 2000}
    budgets: [{pieces: 100, cents: 5000, per: store, period: day}]
    fall_back_s: 20
    in_quiet_hours: hold
    attribution_s: 86400
    caps:
      - {count: 2, period: week, channels: [sms], tags: [loud]}
      - {count: 1, period_s: 86400}
    channels: [websocket, sms]
    words:
      en: {title: Hi}
      de: {title: Hallo}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["promotions", *arguments])


def check(*files: str) -> tuple[int, dict[str, Any]]:
    answer = run("check", "--json", *files)
    return answer.exit_code, json.loads(answer.stdout)


def places(found: Sequence[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(Path(each.get("file", "")).name, each.get("line", 0), each.get("field", "")) for each in found]


@pytest.fixture(autouse=True)
def _far_from_any_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEARCAST_DATA_DIR", str(tmp_path / "data"))


def test_the_examples_are_fine() -> None:
    """Nothing to say of them, by either way of asking, and exit code 0."""
    for name in ("shop.yaml", "vienna.yaml"):
        answer = run("check", str(DOCS / "examples" / name))
        assert (answer.exit_code, answer.stderr) == (0, "")
        assert answer.stdout.startswith("fine: ")
    told = {"promotions": 3, "problems": [], "remarks": [], "unchecked": []}
    assert check(SHOP) == (0, told)


def test_the_everyday_promotions_are_fine() -> None:
    """Those that the docs offer to copy: nothing wrong, and nothing remarkable."""
    result = run("check", str(DOCS / "examples" / "deals.yaml"))
    assert result.exit_code == 0, result.output
    assert "3 promotions, 0 remarks" in result.output


def test_everything_wrong_in_a_file(tmp_path: Path) -> None:
    """Each with file, line, field and plain words; exit code 1. What can't be read is no reason to miss the rest."""
    (tmp_path / "wrong.yaml").write_text(WRONG)
    (tmp_path / "broken.yaml").write_text("promotions: [\n")
    (tmp_path / "odd.yaml").write_text(ODD % "")
    files = [str(tmp_path / name) for name in ("wrong.yaml", "broken.yaml", "odd.yaml", "gone.geojson")]
    (tmp_path / "gone.geojson").write_text('{"type": "FeatureCollection", "features": [{}]}')
    code, told = check(*files)
    assert code == 1
    assert places(told["problems"]) == [
        ("wrong.yaml", 8, "promotions[0].what.discount"),
        ("wrong.yaml", 14, "promotions[1].caps[0]"),
        ("broken.yaml", 2, ""),
        ("odd.yaml", 12, "promotions[0].words.en.title"),
        ("gone.geojson", 0, ""),
    ]
    said = [problem["detail"] for problem in told["problems"]]
    assert said[0] == "a discount has either `percent` or `amount_cents`"
    assert said[1] == "a cap has either `period_s` (seconds) or `period` (day, week or month)"
    assert "'produkt' is not one of" in said[3]
    plain = run("check", *files)
    assert plain.exit_code == 1
    assert f"{files[0]}:8 promotions[0].what.discount: {said[0]}" in plain.stderr.splitlines()
    assert plain.stdout == ""


def test_files_are_checked_together(tmp_path: Path) -> None:
    """References lead into the other files; an id may be given once in all of them."""
    (tmp_path / "odd.yaml").write_text((ODD % "").replace("produkt", "product"))
    code, told = check(SHOP, str(tmp_path / "odd.yaml"))
    assert (code, told["unchecked"]) == (1, [])
    assert [(each["line"], each["field"], each["detail"]) for each in told["problems"]] == [
        (2, "promotions[0]", f"'cart-nearby' is already defined in {SHOP}:27"),
    ]
    (tmp_path / "odd.yaml").write_text((ODD % "").replace("produkt", "product").replace("cart-nearby", "third"))
    code, told = check(SHOP, str(tmp_path / "odd.yaml"))
    assert [(each["line"], each["field"], each["detail"]) for each in told["problems"]] == [
        (8, "promotions[0].where.stores[1]", "names the store 'nowhere', which does not exist"),
    ]
    assert places(told["remarks"]) == [("odd.yaml", 9, "promotions[0].fall_back_s")]


def test_what_the_files_do_not_describe(tmp_path: Path) -> None:
    """Without any stores nobody can say whether those named are there: it is said, and no problem."""
    (tmp_path / "odd.yaml").write_text((ODD % "").replace("produkt", "product"))
    code, told = check(str(tmp_path / "odd.yaml"))
    assert (code, told["problems"]) == (0, [])
    assert told["unchecked"] == ["no file describes the stores graben, nowhere"]
    answer = run("check", str(tmp_path / "odd.yaml"))
    assert "not checked: no file describes the stores graben, nowhere" in answer.stderr
    assert answer.stdout == "fine: 2 promotions, 1 remarks\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x" * 155, None),
        ("x" * 157, "longer than one SMS: with the link it takes 2 (GSM-7)"),
        ("щ" * 67, "longer than one SMS: with the link it takes 3 (UCS-2)"),
        ("x" * 300, "too long for SMS: with the link, what is beyond 320 characters is cut off"),
    ],
)
def test_texts_longer_than_an_sms(tmp_path: Path, body: str, said: str | None) -> None:
    """160 characters, or 70 with one that GSM doesn't have; and what is cut whatever it costs."""
    file = tmp_path / "p.yaml"
    file.write_text((ODD % body).replace("produkt", "product").replace("fall_back_s: 400", "fall_back_s: 4"))
    _, told = check(str(file))
    assert [(each["line"], each["detail"]) for each in told["remarks"]] == ([] if said is None else [(16, said)])


def test_price_rules_by_the_settings_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remarked on while the setting is off; settings that are wrong are told, with exit code 2."""
    file = tmp_path / "p.yaml"
    promotion = {"id": "a", "name": "A", "trigger": "walk_past", "words": {"en": {"title": "Hi"}}}
    file.write_bytes(msgspec.json.encode({"promotions": [promotion | {"what": {"price_rule": {"most_percent": 5}}}]}))
    assert [each["field"] for each in check(str(file))[1]["remarks"]] == ["promotions[0].what.price_rule"]
    monkeypatch.setenv("NEARCAST_PERSONAL_PRICES", "true")
    assert check(str(file))[1]["remarks"] == []
    monkeypatch.setenv("NEARCAST_CAPS", "[{}]")
    answer = run("check", str(file))
    assert (answer.exit_code, "NEARCAST_CAPS: [0]: `count` is missing" in answer.stderr) == (2, True)


def test_told_in_plain_words(tmp_path: Path) -> None:
    """To whom, where, when, what, how often, worth and way; everything that a promotion can have comes up."""
    file = tmp_path / "all.yaml"
    file.write_text(ALL)
    answer = run("explain", str(file))
    assert answer.exit_code == 0, answer.output
    for words in (
        "Everything (all)",
        "customers who are in the group a or b, have the loyalty level gold, have bought coffee before, have bought ",
        "nothing for 30 days, have city Wien, have 100 loyalty points or more and have consented to sms.",
        "its arm (50 %) of the experiment words",
        "10 % of them never get it",
        "When somebody stays for a while: in a fence of the kind store, of the store Graben.",
        "From 2025-01-01 00:00 UTC until 2026-01-01 00:00 UTC.",
        "By the customer's clock: Monday 9:00\u201318:00.",
        "In quiet hours it waits",
        "About Beans (4711) or everything of tea.",
        "A coupon takes 15 % off, 5.00 at most, good for 1 hour.",
        "together with no other coupon, not together with another of the group g, in the store of the offer only and ",
        "for purchases from 20.00 on",
        "at the nearest store within 500 m that has it",
        "At most 2 times by SMS of those tagged loud in a calendar week to one customer.",
        "At most once in any 24 hours to one customer.",
        "In all at most 100 offers and 50.00 of discount for each store in a calendar day.",
        "A redemption brings 3.00; a message costs 0.07.",
        "A purchase within 1 day counts",
        "By the app, else by SMS.",
        "Sent within 1 minute of the moment, or not at all.",
        "If no device acknowledges it for 20 seconds, it goes by SMS.",
        "Taken back if they leave",
        "Written in de and en.",
    ):
        assert words in answer.stdout
    stops = answer.stdout.split("What can stop it")[1]
    assert "nowhere_else" in stops
    assert "personal_prices_off" not in stops
    alone = json.loads(run("explain", "--json", SHOP, "needs-help").stdout)
    assert [each["promotion"] for each in alone] == ["needs-help"]
    assert alone[0]["told"]["To whom"] == ["To the staff of the store."]
    assert "quiet_hours" not in alone[0]["stopped_by"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "there is no file nowhere.yaml"),
        ([SHOP, "nothing"], "there is no promotion 'nothing'"),
        ([SHOP, "--store", "s"], "--store, --url and --key belong to --customer"),
        (["a", "b", "--customer", "ann"], "there is one argument"),
        (["a", "--customer", "ann", "--url", "http://127.0.0.1:1", "--key", "k"], "can't be reached"),
        (["a", "--customer", "ann", "--url", "not a url", "--key", "k"], "can't be reached"),
    ],
)
def test_what_can_not_be_told(arguments: list[str], said: str) -> None:
    """One line, exit code 2, no stack."""
    answer = run("explain", *arguments)
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(404, b'{"detail": "nothing is known of this customer"}'), "nothing is known of this customer"),
        (Reply(502, b"<html>"), "HTTP 502"),
        (Reply(200, b'{"new": "release"}'), "is it of another release?"),
    ],
)
def test_what_the_server_refuses(reply: Reply, said: str) -> None:
    """Its own words where it has some; the question goes to the right place with the key."""
    with recording_server(answer=lambda _: reply) as server:
        answer = run(
            "explain", "deal", "--customer", "a/b", "--store", "s", "--url", f"{server.url}/", "--key", "secret"
        )
        (asked,) = server.requests
    assert asked.path == "/v1/customers/a%2Fb/why-not?promotion=deal&store=s"
    assert asked.headers["Authorization"] == "Bearer secret"
    assert (answer.exit_code, said in answer.stderr) == (2, True)
