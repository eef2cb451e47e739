// A shopper's phone: pushes slide in as cards, are acknowledged at once, and can be opened, applied and dismissed.

import { button, element, explain } from "./dom.js";

const OCCASIONS = {
  walk_past: "Around the corner",
  enter: "You just came in",
  dwell: "While you browse",
  near_product: "At the shelf",
  exit: "Before you go",
  cart_abandoned: "In your cart",
  pickup_arrived: "Your order",
  pickup_wrong_store: "Your order",
  points_reached: "Your points",
  order_ready: "Your order",
  order_status: "Your order",
};
const MAX_CARDS = 12;
// One phone per customer: also in another window, and played by the demo's driver.
const DEVICE = "phone";
const money = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

export class Phone {
  constructor(person, index) {
    this.client = null;
    this.offers = new Map();
    this.element = element("section", "phone");
    this.element.dataset.person = index;
    this.element.dataset.customer = person.customer;
    const heading = element("h2", "", person.name);
    heading.id = `phone-${index}`;
    this.element.setAttribute("aria-labelledby", heading.id);
    const avatar = element("span", "avatar", person.name.slice(0, 1));
    avatar.setAttribute("aria-hidden", "true");
    this.place = element("p", "where", "\u00a0");
    const names = element("div", "");
    names.append(heading, this.place);
    const header = element("header", "");
    header.append(avatar, names);
    this.list = element("ol", "");
    this.list.setAttribute("aria-live", "polite");
    this.list.setAttribute("aria-relevant", "additions");
    this.list.setAttribute("aria-label", `Messages for ${person.name}`);
    this.element.append(header, this.list, element("p", "empty", "Quiet for now. Offers appear here as they come."));
  }

  /** Say where the phone is. */
  at(place) {
    if (this.place.textContent !== place) this.place.textContent = place;
  }

  receive(push) {
    if (push.kind === "withdraw") {
      // What this phone was the first to show stays.
      if (push.reason !== "elsewhere" || push.by !== DEVICE) this.offers.get(push.message)?.withdraw();
      return;
    }
    this.client.rpc("ack", { message: push.message, decision: push.decision, device: DEVICE }).then(
      ({ data }) => data?.won === false && this.offers.get(push.message)?.withdraw(),
      () => {},
    );
    if (this.offers.has(push.message)) return;
    const offer = new Offer(push, (method, data) => this.client.rpc(method, data).then((reply) => reply.data));
    this.offers.set(push.message, offer);
    offer.removed = () => this.offers.delete(push.message);
    this.list.prepend(offer.element);
    this.list.scrollTop = 0;
    offer.tick(Date.now());
    if (this.offers.size > MAX_CARDS) [...this.offers.values()][0].remove();
  }

  tick(now) {
    for (const offer of this.offers.values()) offer.tick(now);
  }
}

class Offer {
  constructor(push, call) {
    this.push = push;
    this.call = call;
    this.removed = () => {};
    this.opened = false;
    this.coupon = null;
    this.arrived = Date.now();
    this.element = element("li", "offer unread");
    // Indoors the phone's own header says where; around the corner the shop is the news.
    const place = push.trigger === "walk_past" && push.store_name ? ` · ${push.store_name}` : "";
    const kicker = element("p", "kicker", `${OCCASIONS[push.trigger] ?? "For you"}${place}`);
    this.body = element("p", "body", push.body);
    this.body.hidden = true;
    this.bar = element("progress", "");
    this.bar.max = Math.max(push.deadline_ms - this.arrived, 1);
    this.bar.setAttribute("aria-label", "Time left");
    this.countdown = element("span", "");
    this.left = element("div", "left");
    this.left.append(this.bar, this.countdown);
    this.openButton = button("Open", () => this.open());
    this.applyButton = button("Apply coupon", () => this.apply(), "main");
    this.actions = element("div", "actions");
    // A notice has nothing to apply.
    this.actions.append(...(push.kind === "offer" ? [this.applyButton] : []), this.openButton);
    const dismiss = button("×", () => this.dismiss(), "dismiss");
    dismiss.setAttribute("aria-label", `Dismiss: ${push.title}`);
    this.problem = element("p", "problem");
    this.problem.setAttribute("role", "alert");
    this.problem.hidden = true;
    this.element.append(kicker, element("h3", "", push.title), this.body, ...priceOf(push), this.left, this.actions, this.problem, dismiss);
  }

  async open() {
    this.show();
    await this.ask("open", { message: this.push.message, decision: this.push.decision });
  }

  async apply() {
    this.applyButton.disabled = true;
    if (!this.opened) await this.open();
    const coupon = await this.ask("apply", { decision: this.push.decision });
    this.applyButton.disabled = false;
    if (!coupon) return;
    this.coupon = coupon;
    this.actions.remove();
    this.left.remove();
    const code = element("strong", "", coupon.code.match(/.{1,5}/g).join(" "));
    const note = element("small", "", `Show this at the till by ${time.format(coupon.expires_ms)}`);
    const box = element("output", "coupon");
    box.append(code, note);
    this.element.append(box);
    this.element.classList.remove("over");
  }

  show() {
    this.opened = true;
    this.body.hidden = false;
    this.openButton.remove();
    this.element.classList.remove("unread");
  }

  async ask(method, data) {
    this.problem.hidden = true;
    try {
      return await this.call(method, data);
    } catch (error) {
      this.problem.textContent = explain(error);
      this.problem.hidden = false;
      return null;
    }
  }

  tick(now) {
    if (this.coupon) return;
    const left = Math.max(this.push.deadline_ms - now, 0);
    this.bar.value = left;
    this.countdown.textContent = left ? clock(left) : "earlier";
    if (!left) {
      // The moment has passed; the coupon itself stays good for as long as the server says.
      this.element.classList.add("over");
      this.bar.hidden = true;
    }
  }

  /** Closed here, an offer closes on the customer's other devices; a coupon is kept there. */
  dismiss() {
    if (!this.coupon) this.call("dismiss", { message: this.push.message, decision: this.push.decision }).catch(() => {});
    this.remove();
  }

  /** The message is no more; a coupon that was applied is still good. */
  withdraw() {
    if (!this.coupon) this.remove();
  }

  remove() {
    this.element.remove();
    this.removed();
  }
}

function clock(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function priceOf(push) {
  const line = element("p", "price");
  if (push.product) line.append(element("span", "", push.product));
  if (push.price_cents && push.discount_cents) {
    line.append(element("strong", "", money.format((push.price_cents - push.discount_cents) / 100)));
    const before = element("s", "", money.format(push.price_cents / 100));
    before.setAttribute("aria-label", `instead of ${before.textContent}`);
    line.append(before);
  }
  if (push.discount_cents) line.append(element("span", "save", `−${money.format(push.discount_cents / 100)}`));
  return line.childElementCount ? [line] : [];
}
