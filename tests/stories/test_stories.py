"""Twenty stories of shops and their customers, each on both event logs. Told in docs/stories.md; the promotions that
they are about stand in promotions.yaml."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from clients.client import Refused
from offers.loading import load_world
from tests.services.forks import output_of
from tests.stories.conftest import PROMOTIONS
from tests.stories.people import Town

DOWN = (503, 20503)


async def test_01_cart_left_alone_and_a_shop_that_has_the_thing(town: Town) -> None:
    """Anna leaves a scarf in her online cart, and later walks past a shop that has it: her phone says so."""
    anna = await town.customer("anna1", locale="de-AT")
    await anna.puts_into_cart("scarf", ago_s=45 * 60)
    await anna.leaves_the_cart()
    await anna.walks_past("graben")
    push = await anna.gets("cart-nearby")
    assert (push.title, push.body) == ("Scarf: 15 % Rabatt", "Noch im Warenkorb, und lagernd bei Graben.")
    coupon = await anna.applies(push)
    await town.till("graben").redeems(coupon)


async def test_02_the_shop_has_none_but_the_next_one_does(town: Town) -> None:
    """Ring is out of the boots in Ben's cart: he gets a coupon for Markt, the nearest shop that has them."""
    ben = await town.customer("ben2")
    await ben.puts_into_cart("boots", ago_s=45 * 60)
    await ben.leaves_the_cart()
    await ben.walks_past("ring")
    push = await ben.gets("cart-elsewhere")
    assert (push.title, push.store) == ("Boots waits for you at Markt", "markt")
    await ben.gets_nothing("cart-nearby", because="out_of_stock")
    coupon = await ben.applies(push)
    with pytest.raises(Refused, match="other_store"):
        await town.till("prater").redeems(coupon)
    await town.till("markt").redeems(coupon)


async def test_03_loyal_customers_are_welcomed(town: Town) -> None:
    """A gold customer who agreed to messages gets a coupon on entering; others don't, for want of gold or consent."""
    cleo, ordinary = await town.customer("cleo3", loyalty="gold"), await town.customer("dan3", loyalty="blue")
    silent = await town.customer("eve3", loyalty="gold", consents=())
    for each in (cleo, ordinary, silent):
        await each.enters("karlsplatz")
    push = await cleo.gets("welcome-gold")
    assert (push.title, push.body) == ("Welcome to Karlsplatz, Cleo3", "$5.00 off whatever you like.")
    await ordinary.gets_nothing("welcome-gold", because="not_in_audience")
    await silent.gets_nothing("welcome-gold", because="no_consent")


async def test_04_a_coat_at_the_price_of_the_last_one(town: Town) -> None:
    """Among the coats Fred is offered one for what his last one cost. Gina paid so little that the limit counts. Henry
    never bought one. Every figure is on record; and none of it happens unless the shop switched it on."""
    fred, gina, henry = [await town.customer(name) for name in ("fred4", "gina4", "henry4")]
    await fred.buys("old-coat", 15_500, days_ago=300)
    await gina.buys("old-coat", 2_000, days_ago=300)
    for each in (fred, gina, henry):
        await each.enters_department("opern-coats")
    push = await fred.gets("last-coat-price")
    assert (push.title, push.price_cents, push.discount_cents) == (
        "Winter coat: $45.00 off, for you", 20_000, 4_500,
    )  # fmt: skip
    audit = (await fred.decided(push))["price"]
    assert {name: audit[name] for name in ("list_cents", "anchor_cents", "least_cents", "offered_cents")} == {
        "list_cents": 20_000, "anchor_cents": 15_500, "least_cents": 14_000, "offered_cents": 15_500,
    }  # fmt: skip
    assert (await gina.gets("last-coat-price")).discount_cents == 6_000
    await henry.gets_nothing("last-coat-price", because="no_anchor_price")
    code, _, told = await output_of({}, town.server.folder, "promotions", "check", str(PROMOTIONS))
    assert code == 0
    assert "NEARCAST_PERSONAL_PRICES is off here: it is never made" in told


async def test_05_three_feet_from_a_promoted_product(town: Town) -> None:
    """Isa stops at the radio, within three feet: her phone tells the product, its price and what is off today. Other
    systems read the same in the topic `customers.promotions`, and that the shop takes it back."""
    isa = await town.customer("isa5")
    await isa.stands_at_the_shelf_of("radio", "stephan")
    push = await isa.gets("at-the-shelf")
    assert (push.kind, push.title, push.body) == ("offer", "Radio: 20% off", "$90.00 on the label. Aisle 4.")
    assert (push.product, push.sku, push.price_cents, push.discount_cents) == ("Radio", "radio", 9_000, 1_800)
    record = await town.tells_others(isa, push, "offer")
    assert record == {**msgspec.to_builtins(push), "customer": "isa5", "channel": "websocket"}
    await town.takes_back(isa, push)
    assert (await isa.loses(push)).reason == "recalled"
    assert (await town.tells_others(isa, push, "withdraw"))["reason"] == "recalled"


async def test_06_something_on_the_wishlist_is_near(town: Town) -> None:
    """The lamp that Jo wishes for is near: the phone names the aisle. Once checked off, it is not spoken of again."""
    jo = await town.customer("jo6")
    await jo.wishes_for("lamp")
    await jo.stands_at_the_shelf_of("lamp", "volks")
    push = await jo.gets("wish-nearby")
    assert (push.title, push.body) == ("You wished for it: Reading lamp", "Aisle 7. 10% off today.")
    await jo.checks_off("lamp")
    conditions = (await jo.why_not("wish-nearby", "volks"))["conditions"]
    assert [each["name"] for each in conditions if each["holds"] is False] == ["who.on_wishlist"]


async def test_07_sold_out_here(town: Town) -> None:
    """The tent is sold out. At Hafen there is nothing like it: Kim is sent to Insel. At Mariahilf there is a larger
    one: Lou is offered that. Where the tent itself is to be had, neither is said."""
    kim, lou, max_ = [await town.customer(name) for name in ("kim7", "lou7", "max7")]
    await kim.scans("tent", "hafen")
    there = await kim.gets("sold-out-go-there")
    assert (there.title, there.store, there.sku) == ("Insel has Tent for two", "insel", "tent")
    await kim.gets_nothing("sold-out-take-this", because="no_alternative")
    await lou.scans("tent", "mariahilf")
    instead = await lou.gets("sold-out-take-this")
    assert instead.title == "Tent for two is sold out. What about Tent for three?"
    assert (instead.store, instead.sku, instead.instead_of) == ("mariahilf", "tent-xl", "Tent for two")
    await lou.gets_nothing("sold-out-go-there", because="nowhere_else")
    await max_.scans("tent", "insel")
    await max_.gets_nothing("sold-out-go-there", because="in_stock")


async def test_08_a_thousand_points(town: Town) -> None:
    """Nora's points rise past a thousand: a flash special, once. Rising further says nothing more."""
    nora = await town.customer("nora8", points=900)
    await nora.has_points(1_050)
    push = await nora.gets("flash-special")
    assert push.title == "1,000 points: $10.00 off, for an hour"
    await nora.has_points(1_200)
    assert [each["id"] for each in await town.office.decisions(nora.id)] == [push.decision]


async def test_09_scanned_looked_up_looked_at(town: Town) -> None:
    """A code on a box, a look-up on the shop's Wi-Fi and a look at the product online each lead to an offer."""
    otto = await town.customer("otto9")
    await otto.scans("headphones", "neubau")
    assert (await otto.gets("scan-deal")).title == "Headphones: 12% off"
    await otto.looks_up("headphones", "neubau")
    assert (await otto.gets("wifi-deal")).title == "Headphones: 8% off, here and now"
    await otto.looks_at("headphones")
    assert (await otto.gets("view-deal")).title == "Still thinking about Headphones? 5% off"


async def test_10_click_and_collect(town: Town) -> None:
    """Pia drives up for her order: the shop's tablet says when she comes, her phone where to go."""
    pia, tablet = await town.customer("pia10"), await town.tablet("tess", "wieden")
    await pia.has_an_order("A-10", "order_ready", store="wieden")
    await pia.sets_out_for("A-10", "wieden", minutes_ago=5)
    await pia.drives_to("wieden", from_m=4_200)
    alert = await tablet.gets("pickup-coming")
    assert alert.title == f"A-10: customer {alert.customer} in 5 min"
    assert "Pia" not in f"{alert}"
    push = await pia.gets("pickup-here")
    assert (push.kind, push.title, push.order) == ("notice", "A-10 is at counter 3, Pia10", "A-10")
    (coming,) = (await town.ask("GET", "/v1/stores/wieden/pickups", role="staff"))["pickups"]
    assert (coming["order"], coming["state"], coming["customer"]) == ("A-10", "arrived", alert.customer)


async def test_11_a_very_good_customer_arrives(town: Town) -> None:
    """Staff are told that a very good customer has come in; the customer is not."""
    quinn, tablet = await town.customer("quinn11", groups=["vip"]), await town.tablet("tim", "josef")
    await quinn.enters("josef")
    tip = await tablet.gets("vip-tip")
    assert (tip.kind, tip.store_name) == ("assist", "Josef")
    assert tip.title == f"{tip.customer} has come in: say hello"
    assert quinn.phone is not None
    assert quinn.phone.pushes == []


async def test_12_somebody_needs_help(town: Town) -> None:
    """Rosa looks around among the electronics and hasn't bought anything: an alert. Of two associates who want to go
    one does; the other one sees who. Sam, who has just bought something, is left alone."""
    rosa, sam = await town.customer("rosa12"), await town.customer("sam12")
    tess, tim = await town.tablet("tess12", "schotten"), await town.tablet("tim12", "schotten")
    await sam.buys("radio", 9_000)
    for each in (rosa, sam):
        await each.looks_around_in("schotten-electronics")
    alerts = await asyncio.gather(tess.gets("may-need-help"), tim.gets("may-need-help"))
    claims = await asyncio.gather(tess.claims(alerts[0]), tim.claims(alerts[1]))
    assert sorted(claim.won for claim in claims) == [False, True]
    winner = tess if claims[0].won else tim
    assert {claim.claimed_by for claim in claims} == {winner.associate}
    loser = tim if winner is tess else tess
    taken = await loser.loses(alerts[0])
    assert (taken.reason, taken.by) == ("claimed", winner.associate)
    await sam.gets_nothing("may-need-help", because="not_in_audience")


async def test_13_an_associate_has_helped_already(town: Town) -> None:
    """Toni needs help, and Tess goes. Once she has helped, no message disturbs what she has told Toni."""
    toni, tess = await town.customer("toni13"), await town.tablet("tess13", "schotten")
    await toni.looks_around_in("schotten-electronics")
    alert = await tess.gets("may-need-help")
    assert (await tess.claims(alert)).won
    await tess.has_helped(alert)
    await toni.has_been_helped()
    await toni.scans("headphones", "neubau")
    await toni.gets_nothing("scan-deal", because="staff_contact")


async def test_14_closed_or_sold_out_by_now(town: Town) -> None:
    """The shop is closed: nothing is decided. Or it closes, or sells out, while the message waits for the SMS provider:
    it is not sent, and says why. What still holds arrives once the provider is back."""
    ulla, vera, will, xena = [
        await town.customer(name, consents=("sms",)) for name in ("ulla14", "vera14", "will14", "xena14")
    ]
    for each in (ulla, vera, will, xena):
        await each.puts_into_cart("scarf")
    await ulla.walks_past("nacht")
    await ulla.gets_nothing("cart-nearby", because="store_closed")
    town.sms.down = DOWN
    try:
        await vera.walks_past("spittel")
        await vera.waits_for_sms("cart-nearby")
        await town.closes("spittel")
        await will.walks_past("alser")
        await will.waits_for_sms("cart-nearby")
        await town.has_in_stock("alser", "scarf", 0)
        await xena.walks_past("graben")
    finally:
        town.sms.down = None
    await vera.gets_nothing("cart-nearby", because="store_closed")
    await will.gets_nothing("cart-nearby", because="out_of_stock")
    assert "Scarf: 15% off" in await xena.gets_sms("cart-nearby")


async def test_15_opted_out_in_the_middle(town: Town) -> None:
    """Yara opts out while a message to her is on its way: it is not sent. Zoe, who doesn't, gets hers."""
    yara, zoe = [await town.customer(name, consents=("sms",)) for name in ("yara15", "zoe15")]
    for each in (yara, zoe):
        await each.puts_into_cart("scarf")
    town.sms.down = DOWN
    try:
        await yara.walks_past("doebling")
        await yara.waits_for_sms("cart-nearby")
        await yara.opts_out()
        await zoe.walks_past("doebling")
    finally:
        town.sms.down = None
    await yara.gets_nothing("cart-nearby", because="opted_out")
    assert "Scarf: 15% off" in await zoe.gets_sms("cart-nearby")


async def test_16_gone_before_it_was_read(town: Town) -> None:
    """Abe leaves without having looked at the phone: the offer is gone from it, and can't be applied any more. Bea has
    opened hers, and keeps it."""
    abe, bea = await town.customer("abe16", loyalty="gold"), await town.customer("bea16", loyalty="gold")
    for each in (abe, bea):
        await each.enters("simmering")
    unread, read = await abe.gets("welcome-gold"), await bea.gets("welcome-gold")
    await bea.opens(read)
    for each in (abe, bea):
        await each.leaves("simmering")
    assert (await abe.loses(unread)).reason == "recalled"
    assert (await town.tells_others(abe, unread, "withdraw"))["reason"] == "recalled"
    await abe.was_taken_back(unread, because="left")
    with pytest.raises(Refused, match="offer_recalled"):
        await abe.applies(unread)
    assert (await bea.applies(read)).code


async def test_17_the_last_one_is_sold(town: Town) -> None:
    """Two customers hold the offer of the last vase when somebody else buys it: it is gone from both phones within
    seconds, and neither can apply it."""
    cara, dora = await town.customer("cara17"), await town.customer("dora17")
    for each in (cara, dora):
        await each.puts_into_cart("vase")
        await each.walks_past("favoriten")
    offers = [await each.gets("cart-nearby") for each in (cara, dora)]
    await town.has_in_stock("favoriten", "vase", 0)
    for each, offer in zip((cara, dora), offers, strict=True):
        assert (await each.loses(offer, within_s=5)).reason == "recalled"
        await each.was_taken_back(offer, because="out_of_stock")
        with pytest.raises(Refused, match="offer_recalled"):
            await each.applies(offer)


async def test_18_how_an_order_goes_on(town: Town) -> None:
    """Emil is told that his order is packed, and then that it is shipped; what concerns only the shop, he isn't."""
    emil = await town.customer("emil18")
    await emil.has_an_order("B-18", "order_status", status="printed")
    for status in ("packed", "shipped"):
        await emil.has_an_order("B-18", "order_status", status=status)
        push = await emil.gets("order-update")
        assert (push.kind, push.title) == ("notice", f"Your order B-18 is {status}")
    with pytest.raises(Refused):
        await emil.applies(push)
    assert len(await town.office.decisions(emil.id)) == 2


async def test_19_a_visitor_turns_out_to_be_a_customer(town: Town) -> None:
    """On the shop's Wi-Fi somebody wishes for a lamp. Nobody knows who it is, and nothing is sent. Then Flora signs
    in, and at the lamp's shelf her phone reminds her."""
    somebody = town.visitor("wifi-19")
    await somebody.looks_up("headphones", "neubau")
    await somebody.gets_nothing("wifi-deal", because="no_consent")
    await somebody.wishes_for("lamp")
    await somebody.signs_in_as("flora19")
    await town.opens_the_app(somebody)
    await somebody.stands_at_the_shelf_of("lamp", "hietzing")
    assert (await somebody.gets("wish-nearby")).body == "Aisle 1. 10% off today."


async def test_20_what_was_bought_comes_back(town: Town) -> None:
    """Gus redeems the coupon for the kettle he had left in his cart, and brings the kettle back: the redemption is
    called off, the coupon is good again, and the promotion's report says so."""
    gus = await town.customer("gus20")
    await gus.puts_into_cart("kettle", ago_s=45 * 60)
    coupon = await gus.applies(await gus.gets("cart-waiting"))
    redemption = await town.till("graben").redeems(coupon, paid_cents=4_900, off_cents=490)
    report = await town.report("cart-waiting", lambda report: report["money"]["revenue_cents"] > 0)
    assert report["money"] == {"revenue_cents": 4_900, "discount_cents": 490, "effective_discount": 0.1}
    assert report["outcomes"]["rolled_back"] == 0
    assert (await town.till("graben").takes_back(coupon, redemption))["state"] == "applied"
    report = await town.report("cart-waiting", lambda report: report["outcomes"]["rolled_back"])
    assert report["outcomes"]["rolled_back"] == 1
    assert report["money"] == {"revenue_cents": 0, "discount_cents": 0, "effective_discount": None}
    await town.till("ring").redeems(coupon, paid_cents=4_900, off_cents=490)


def test_the_page() -> None:
    """docs/stories.md names every story once, and every promotion of promotions.yaml."""
    page = (Path(__file__).parents[2] / "docs" / "stories.md").read_text(encoding="utf-8")
    told = [line.split("|") for line in page.splitlines() if re.match(r"\| \d", line)]
    stories = [name for name in globals() if re.match(r"test_\d\d_", name)]
    assert [columns[3].strip(" `") for columns in told] == stories
    assert [int(columns[1]) for columns in told] == list(range(1, 21))
    named = {name for columns in told for name in re.findall(r"`(.*?)`", columns[4])}
    assert named == {
        each.id for each in load_world(PROMOTIONS.read_text(encoding="utf-8"), "promotions.yaml").promotions
    }
