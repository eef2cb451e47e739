// How many people are in each zone of one shop: a bar and a number, or that they are too few to be shown.

import { element } from "./dom.js";

export class Footfall {
  /** `shop` is the select that says which shop. */
  constructor(list, note, shop) {
    this.list = list;
    this.note = note;
    this.shop = shop;
    this.stores = {};
    shop.addEventListener("change", () => this.paint());
  }

  /** `stores`: by id, what the API says of the shops. */
  show(stores) {
    this.stores = stores ?? {};
    this.paint();
  }

  paint() {
    const told = this.stores[this.shop.value];
    this.note.textContent = told ? `In ${this.shop.selectedOptions[0]?.text ?? "the shop"}; rounded down to multiples of ${told.k}.` : "No figures yet.";
    const zones = told?.zones ?? [];
    const most = Math.max(1, ...zones.map(({ people }) => people ?? 0));
    while (this.list.childElementCount > zones.length) this.list.lastElementChild.remove();
    for (const [index, zone] of zones.entries()) {
      const row = this.list.children[index] ?? this.list.appendChild(newRow());
      const [name, count, bar] = row.children;
      name.textContent = zone.name || zone.fence;
      bar.style.setProperty("--share", zone.people === null ? 0 : zone.people / most);
      count.textContent = zone.people === null ? zone.withheld : String(zone.people);
      count.className = zone.people === null ? "few" : "";
    }
  }
}

function newRow() {
  const row = element("li");
  const bar = element("i");
  bar.setAttribute("aria-hidden", "true");
  row.append(element("span"), element("b"), bar);
  return row;
}
