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
      this.withdraw(push);
      return;
    }
    this.client.rpc("ack", { message: push.message, decision: push.decision }).catch(() => {});
    if (this.alerts.has(push.message)) return;
    const row = element("li", "alert");
    const place = [push.fence_name || this.nameOfFence(push.fence), push.store_name].filter(Boolean).join(", ");
    const who = push.customer ? `Shopper ${push.customer} · ` : "";
    const alert = { push, row, asked: false, button: null };
    alert.button = button("I’ll go", () => this.claim(alert), "claim");
    alert.button.setAttribute("aria-label", `I’ll go: ${push.title}, ${place}`);
    row.append(element("h3", "", push.title), alert.button, element("p", "", `${place || push.body} · ${who}${clock.format(push.at_ms)}`));
    this.alerts.set(push.message, alert);
    this.list.prepend(row);
    while (this.list.childElementCount > MAX_ALERTS) this.list.lastElementChild.remove();
  }

  withdraw({ message, reason }) {
    const alert = this.alerts.get(message);
    if (!alert) return;
    if (reason !== "claimed") {
      this.alerts.delete(message);
      alert.row.remove();
    } else if (!alert.asked) {
      // Whoever asked here learns from the answer who goes.
      this.settle(alert, "A colleague goes");
    }
  }

  async claim(alert) {
    const data = await this.ask(alert, "assist.claim", { message: alert.push.message });
    if (!data) return;
    const done = data.won ? button("Helped", () => this.close(alert), "claim") : null;
    this.settle(alert, data.won ? "You’re on it" : "A colleague goes", done).focus({ preventScroll: true });
  }

  /** The shopper is served: the alert goes from all tablets. */
  async close(alert) {
    const { message, decision } = alert.push;
    if (await this.ask(alert, "assist.close", { message, decision, outcome: "helped" })) this.withdraw({ message });
  }

  async ask(alert, method, data) {
    alert.asked = alert.button.disabled = true;
    try {
      return (await this.client.rpc(method, data)).data;
    } catch (error) {
      alert.asked = alert.button.disabled = false;
      alert.button.title = explain(error);
      return null;
    }
  }

  /** Say who goes, in place of the button; with another button if there is something left to do. */
  settle(alert, text, next = null) {
    alert.row.classList.add("done");
    const taken = element("div", "taken");
    const said = element("p", "", text);
    said.setAttribute("role", "status");
    said.tabIndex = -1;
    taken.append(said);
    alert.button.replaceWith(taken);
    if (next) {
      alert.button = next;
      next.setAttribute("aria-label", `Helped: ${alert.push.title}`);
      taken.append(next);
    }
    return said;
  }
}
