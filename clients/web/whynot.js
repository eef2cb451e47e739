// What led to no message, or to one that was stopped: how often for which reason, and the latest of them.

import { button, element } from "./dom.js";

const OCCASIONS = {
  walk_past: "walking past",
  enter: "coming in",
  dwell: "staying",
  near_product: "at the shelf",
  exit: "leaving",
  help_request: "asking for help",
  cart_abandoned: "cart left alone",
  product_view: "looking at a product",
  points_reached: "points reached",
  order_ready: "order ready",
  order_status: "order under way",
};
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const number = new Intl.NumberFormat("en");

export class WhyNot {
  constructor(total, reasons, list) {
    this.total = total;
    this.reasons = reasons;
    this.list = list;
    this.lines = [];
    this.chosen = "";
    this.buttons = new Map();
  }

  /** `told`: the counts by reason and the latest lines; null if nothing is new. */
  show(told) {
    if (!told) return;
    this.lines = told.lines;
    const sum = told.reasons.reduce((all, { count }) => all + count, 0);
    this.total.textContent = `${number.format(sum)} so far`;
    for (const { reason, words, count } of told.reasons) this.count(reason, words, count);
    this.paint();
  }

  /** A reason keeps its button, so that the keyboard's focus stays where it is while counts rise. */
  count(reason, words, count) {
    let made = this.buttons.get(reason);
    if (!made) {
      made = button("", () => this.choose(reason));
      made.append(element("b"), element("span", "", words));
      made.setAttribute("aria-pressed", "false");
      this.buttons.set(reason, made);
      const item = element("li");
      item.append(made);
      this.reasons.append(item);
    }
    made.firstElementChild.textContent = number.format(count);
  }

  choose(reason) {
    this.chosen = this.chosen === reason ? "" : reason;
    for (const [name, made] of this.buttons) made.setAttribute("aria-pressed", String(name === this.chosen));
    this.paint();
  }

  paint() {
    const lines = this.lines.filter(({ reason }) => !this.chosen || reason === this.chosen);
    this.list.replaceChildren(...lines.map(row));
    if (!lines.length) this.list.append(element("li", "none", this.chosen ? "None of the latest." : "None yet."));
  }
}

function row({ at_ms, customer, trigger, store, promotion, what, words }) {
  const item = element("li");
  item.dataset.what = what;
  const time = element("time", "", clock.format(at_ms));
  time.dateTime = new Date(at_ms).toISOString();
  const place = [OCCASIONS[trigger] ?? trigger.replaceAll("_", " "), store].filter(Boolean).join(", ");
  const who = element("span", "", [customer, place].filter(Boolean).join(" · "));
  const why = element("span", "", `${promotion}${promotion && words ? ": " : ""}`);
  why.append(element("strong", "", words));
  item.append(time, element("b", "", what), who, why);
  return item;
}
