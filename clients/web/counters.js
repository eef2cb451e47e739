// The row of live counters.

const number = new Intl.NumberFormat("en");

function milliseconds(value) {
  return value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)}`;
}

export class Counters {
  constructor(list) {
    this.events = tile(list, "Events in");
    this.moments = tile(list, "Entered, stayed, left");
    this.pushes = tile(list, "Messages delivered");
    this.coupons = tile(list, "Coupons applied");
    this.trouble = tile(list, "Errors");
    this.latency = tile(list, "Event to device, milliseconds", "wide");
  }

  /** `counts` has the shape of the demo's final line. */
  show(counts) {
    const { websocket, sms, email } = counts.pushes;
    const decided = Object.values(counts.decisions).reduce((sum, value) => sum + value, 0);
    fill(this.events, number.format(counts.events_in), `${number.format(counts.dead_letters)} dead letters`);
    fill(this.moments, number.format(counts.transitions), `${number.format(decided)} moments decided`);
    const delivered = websocket.delivered + sms.delivered + email.delivered;
    fill(this.pushes, number.format(delivered), `${websocket.delivered} app · ${sms.delivered} SMS · ${email.delivered} mail`);
    fill(this.coupons, number.format(counts.coupons.applied), `${number.format(counts.coupons.redeemed)} redeemed at the till`);
    const kinds = Object.keys(counts.errors_by_kind);
    fill(this.trouble, number.format(counts.errors), kinds.join(", ") || "nothing went wrong");
    this.trouble.dataset.alarm = String(counts.errors > 0);
    const { p50, p95, p99 } = counts.event_to_device_ms;
    fillTrio(this.latency, [["median", p50], ["p95", p95], ["p99", p99]]);
  }
}

function tile(list, label, kind = "") {
  const element = document.createElement("div");
  element.className = `counter ${kind}`;
  const term = document.createElement("dt");
  term.textContent = label;
  const value = document.createElement("dd");
  value.className = "big";
  value.textContent = "–";
  const note = document.createElement("dd");
  note.className = "small";
  note.textContent = "\u00a0";
  element.append(term, value, note);
  list.append(element);
  return element;
}

function fill(element, value, note) {
  element.querySelector(".big").textContent = value;
  element.querySelector(".small").textContent = note;
}

function fillTrio(element, parts) {
  const value = element.querySelector(".big");
  value.classList.add("trio");
  value.replaceChildren(
    ...parts.map(([name, amount]) => {
      const span = document.createElement("span");
      const small = document.createElement("small");
      small.textContent = name;
      span.append(milliseconds(amount), small);
      return span;
    }),
  );
  element.querySelector(".small").textContent = "from the event to the push in hand";
}
