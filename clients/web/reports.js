// The reports page: asks for an API key (in the demo none is needed), fetches what the engines counted, and shows it.
// Everything shown is computed by the server; here it is only put into words and pictures.

import { bars, line, whiskers } from "./charts.js";
import { element } from "./dom.js";

const IN_DEMO = location.pathname.startsWith("/demo/");
const KEY = "nearcast-reports-key";
const REFRESH_MS = 10_000;
const STEPS = { decided: "Decided", sent: "Sent", delivered: "Delivered", opened: "Opened", applied: "Applied", redeemed: "Redeemed" };
const OUTCOMES = {
  suppressed: "not sent after all", failed: "failed", expired: "expired unseen", recalled: "taken back", dismissed: "dismissed",
  rolled_back: "redemptions called off",
};

const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const money = new Intl.NumberFormat("en", { style: "currency", currency: "USD" });
const shortMoney = new Intl.NumberFormat("en", { style: "currency", currency: "USD", notation: "compact", maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const signed = new Intl.NumberFormat("en", { signDisplay: "exceptZero", maximumFractionDigits: 1 });
const dollars = (cents) => money.format(cents / 100);
const share = (value) => (value === null ? "–" : percent.format(value));
const short = (value) => (value < 100_000 ? number : compact).format(value);
const points = (value) => signed.format(100 * value);
const at = (id) => document.getElementById(id);

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function fetchReport(promotion) {
  const asked = new URLSearchParams({ from: at("from").value, to: at("to").value });
  const one = promotion === null ? "" : encodeURIComponent(promotion);
  let path = promotion === null ? "/v1/promotions/report" : `/v1/promotions/${one}/report`;
  if (IN_DEMO) path = promotion === null ? "/demo/reports" : `/demo/reports/${one}`;
  const headers = IN_DEMO ? {} : { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  const answer = await fetch(`${path}?${asked}`, { cache: "no-store", headers });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, body.detail ?? `HTTP ${answer.status}`);
  return body;
}

/** The promotion that the address names, or null. */
function chosen() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

let asking = 0;

/** Fetch and show; a newer call makes an older one's answers needless. */
async function refresh() {
  if (!IN_DEMO && !sessionStorage.getItem(KEY)) return ask("");
  const mine = (asking += 1);
  const promotion = chosen();
  try {
    const [table, report] = await Promise.all([fetchReport(null), promotion === null ? null : fetchReport(promotion).catch(gone)]);
    if (mine !== asking) return;
    at("ask").hidden = true;
    at("figures").hidden = false;
    at("wrong").textContent = "";
    showTable(table.promotions, promotion);
    showReport(report);
    setStatus("live", "Up to date");
  } catch (error) {
    if (mine !== asking) return;
    setStatus("waiting", "Not up to date");
    if (error.status === 401 || error.status === 403) return ask(error.message);
    at("figures").hidden = false;
    const asked = error.status === 400 || error.status === 422;
    at("wrong").textContent = asked ? `That does not work: ${error.message}.` : "The figures can't be fetched just now.";
  }
}

function gone(error) {
  if (error.status === 404) return null;
  throw error;
}

function ask(refused) {
  sessionStorage.removeItem(KEY);
  at("figures").hidden = true;
  at("ask").hidden = false;
  at("refused").textContent = refused && `That key was not taken: ${refused}.`;
  setStatus("waiting", "A key is needed");
  at("key").focus();
}

function setStatus(state, text) {
  // Said aloud when it changes, and only then.
  if (at("status").textContent === text) return;
  at("status").dataset.state = state;
  at("status").textContent = text;
}

const rows = new Map();

function showTable(promotions, current) {
  const body = at("list").tBodies[0];
  at("none").hidden = promotions.length > 0;
  const ids = new Set(promotions.map(({ promotion }) => promotion));
  for (const [id, row] of rows) {
    if (!ids.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  for (const each of promotions) {
    const row = rows.get(each.promotion) ?? newRow(body, each.promotion);
    const [name, ...cells] = row.children;
    name.firstElementChild.textContent = each.name || each.promotion;
    name.lastElementChild.textContent = each.kind ?? "gone";
    const got = Object.fromEntries(each.funnel.map(({ step, messages }) => [step, messages]));
    const lift = each.lift.difference;
    const texts = [
      ...["decided", "delivered", "opened", "redeemed"].map((step) => number.format(got[step])),
      dollars(each.money.revenue_cents),
      share(each.money.effective_discount),
      lift ? `${points(lift.value)} (${points(lift.low)} to ${points(lift.high)})` : "–",
    ];
    cells.forEach((cell, place) => (cell.textContent = texts[place]));
    if (each.promotion === current) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

function newRow(body, promotion) {
  const row = element("tr");
  const name = element("th");
  name.scope = "row";
  const link = element("a");
  link.href = `#${encodeURIComponent(promotion)}`;
  name.append(link, element("small"));
  row.append(name, ...Array.from({ length: 7 }, () => element("td")));
  body.append(row);
  rows.set(promotion, row);
  return row;
}

function showReport(report) {
  at("one").hidden = report === null;
  if (report === null) return;
  const { funnel, money: redeemed, attribution, treated, held_out: held, lift } = report;
  at("one-title").textContent = report.name || report.promotion;
  at("one-about").textContent = `${report.kind ?? "gone"} · ${report.promotion} · offers of ${report.from} to ${report.to}`;
  const last = funnel.at(-1);
  const window = attribution.window_s === null ? "" : ` within ${days(attribution.window_s)}`;
  tiles([
    ["Redeemed", number.format(last.messages), `${share(last.of_decided)} of all decided`],
    ["Revenue of redemptions", dollars(redeemed.revenue_cents), `${share(redeemed.effective_discount)} of it given as discount`],
    [`Bought${window}`, number.format(attribution.converted), `${dollars(attribution.last_touch_cents)} by last touch, ${dollars(attribution.linear_cents)} in equal shares`],
    ["Lift, percentage points", lift.difference ? points(lift.difference.value) : "–", inWords(lift)],
  ]);
  const steps = funnel.map(({ step, messages, of_decided: part }) => ({
    label: STEPS[step], value: messages, text: `${short(messages)} · ${share(part)}`,
  }));
  bars(at("funnel"), steps, `Messages by how far they got: ${steps.map(({ label, text }) => `${label} ${text}`).join(", ")}`);
  facts(at("outcomes"), outcomes(report));
  const difference = lift.difference ? [{ label: "Percentage points more who bought", ...lift.difference }] : [];
  whiskers(at("lift"), difference, points, `Lift in percentage points: ${inWords(lift)}`);
  facts(at("arms"), arms(treated, held, lift));
  const byDay = (what) => report.days.map((day) => ({ label: day.day, value: day[what] }));
  const sum = (what) => report.days.reduce((total, day) => total + day[what], 0);
  line(at("redeemed"), byDay("redeemed"), short, `Redemptions by day, ${number.format(sum("redeemed"))} in all; the table below has them`);
  line(at("revenue"), byDay("revenue_cents"), (cents) => shortMoney.format(cents / 100), `Revenue by day, ${dollars(sum("revenue_cents"))} in all; the table below has it`);
  showDays(report.days);
  at("budgets-card").hidden = report.budgets.length === 0;
  facts(at("budgets"), report.budgets.map(spent));
}

/** One budget in words: what is out of it in its present period. */
function spent({ per, store, period, pieces, cents, used_pieces: offers = 0, used_cents: off = 0 }) {
  const where = per === "store" ? `${store}, ` : "";
  const when = period === "all" ? "in all" : `${period.replace(" ", " of ")}`;
  const told = [];
  if (pieces !== undefined) told.push(`${number.format(offers)} of ${number.format(pieces)} offers`);
  if (cents !== undefined) told.push(`${dollars(off)} of ${dollars(cents)} off`);
  return `${where}${when}: ${told.join(", ")}`;
}

function days(seconds) {
  const [count, unit] = seconds % 86_400 === 0 ? [seconds / 86_400, "day"] : [Math.round(seconds / 360) / 10, "hour"];
  return `${number.format(count)} ${unit}${count === 1 ? "" : "s"}`;
}

function inWords({ difference }) {
  if (!difference) return "nothing can be said yet";
  const range = `${points(difference.low)} to ${points(difference.high)}`;
  return difference.low <= 0 && difference.high >= 0 ? `${range}: it may be nothing` : `${range}, with 95 % confidence`;
}

function outcomes({ outcomes: counted, reasons }) {
  return Object.entries(counted)
    .filter(([, count]) => count)
    .map(([outcome, count]) => {
      const why = Object.entries(reasons[outcome] ?? {}).map(([reason, times]) => `${reason.replaceAll("_", " ")} ${number.format(times)}`);
      return `${number.format(count)} ${OUTCOMES[outcome]}${why.length ? ` (${why.join(", ")})` : ""}`;
    });
}

function arms(treated, held, lift) {
  const arm = (name, { windows, bought, rate, mean_cents: mean }) =>
    `${name}: ${number.format(bought)} of ${number.format(windows)} bought (${share(rate)}), ${mean === null ? "–" : dollars(mean)} each`;
  const told = [arm("Made the offer", treated), arm("Held out", held)];
  if (lift.relative) {
    const { value, low, high } = lift.relative;
    told.push(`Relative lift: ${signed.format(100 * value)} % (${signed.format(100 * low)} to ${signed.format(100 * high)})`);
  }
  if (lift.revenue_cents) {
    const { value, low, high } = lift.revenue_cents;
    told.push(`Revenue more for each: ${dollars(value)} (${dollars(low)} to ${dollars(high)})`);
  }
  return told;
}

function facts(list, lines) {
  list.replaceChildren(...lines.map((text) => element("li", "", text)));
}

function tiles(figures) {
  at("tiles").replaceChildren(
    ...figures.map(([label, value, note]) => {
      const tile = element("div", "counter");
      tile.append(element("dt", "", label), element("dd", "big", value), element("dd", "small", note));
      return tile;
    }),
  );
}

function showDays(list) {
  const rowOf = (day) => {
    const row = element("tr");
    const head = element("th", "", day.day);
    head.scope = "row";
    const texts = [
      ...["decided", "delivered", "redeemed", "rolled_back"].map((what) => number.format(day[what])),
      dollars(day.revenue_cents), dollars(day.discount_cents), number.format(day.converted), dollars(day.last_touch_cents),
    ];
    row.append(head, ...texts.map((text) => element("td", "", text)));
    return row;
  };
  at("days").tBodies[0].replaceChildren(...list.map(rowOf).reverse());
}

function start() {
  const day = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);
  [at("from").value, at("to").value] = [day(27), day(0)];
  at("demo").hidden = !IN_DEMO;
  at("forget").hidden = IN_DEMO;
  at("forget").addEventListener("click", () => ask(""));
  at("range").addEventListener("change", refresh);
  at("range").addEventListener("submit", (event) => event.preventDefault());
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, at("key").value.trim());
    at("key").value = "";
    refresh();
  });
  addEventListener("hashchange", async () => {
    await refresh();
    if (!at("one").hidden) at("one-title").focus();
  });
  setInterval(() => {
    if (document.visibilityState === "visible" && !at("figures").hidden) refresh();
  }, REFRESH_MS);
  refresh();
}

start();
