// The staff tablet of one shop: alerts, and who goes.

import { button, element, explain } from "./dom.js";

const MAX_ALERTS = 6;
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class Tablet {
  /** `nameOfFence` gives a place inside the shop its name, "" if it has none. */
  constructor(root, staff, nameOfFence) {
    this.client = null;
    this.nameOfFence = nameOfFence;
    this.list = root.querySelector("#alerts");
    this.alerts = new Map();
    root.querySelector("#tablet-store").textContent = staff.name;
  }

  receive(push) {
    if (push.kind === "withdraw") {
      this.alerts.get(push.message)?.remove();
      this.alerts.delete(push.message);
      return;
    }
    this.client.rpc("ack", { message: push.message, decision: push.decision }).catch(() => {});
    if (this.alerts.has(push.message)) return;
    const alert = element("li", "alert");
    const place = [push.fence_name || this.nameOfFence(push.fence), push.store_name].filter(Boolean).join(", ");
    const who = push.customer ? `Shopper ${push.customer} · ` : "";
    const claim = button("I’ll go", () => this.claim(push, alert, claim), "claim");
    claim.setAttribute("aria-label", `I’ll go: ${push.title}, ${place}`);
    alert.append(element("h3", "", push.title), claim, element("p", "", `${place || push.body} · ${who}${clock.format(push.at_ms)}`));
    this.alerts.set(push.message, alert);
    this.list.prepend(alert);
    while (this.list.childElementCount > MAX_ALERTS) this.list.lastElementChild.remove();
  }

  async claim(push, alert, claim) {
    claim.disabled = true;
    let text;
    try {
      const { data } = await this.client.rpc("assist.claim", { message: push.message });
      text = data.won ? "You’re on it" : "A colleague goes";
    } catch (error) {
      text = explain(error);
      claim.disabled = false;
      claim.title = text;
      return;
    }
    alert.classList.add("done");
    const taken = element("p", "taken", text);
    taken.setAttribute("role", "status");
    taken.tabIndex = -1;
    claim.replaceWith(taken);
    taken.focus({ preventScroll: true });
  }
}
