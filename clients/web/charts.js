// Three plain charts as inline SVG: bars of a funnel, a line by day, dots with whiskers. Each is drawn anew at the width
// of its host, and says in words what it shows.

const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

const drawers = new WeakMap();
const observer = new ResizeObserver((entries) => entries.forEach(({ target }) => drawers.get(target)?.()));

/** Draw into `host`, now and whenever its width changes. `draw` gets the width and returns [height, parts, words]. */
function keepDrawn(host, draw) {
  let [drawn, first] = [0, true];
  const paint = () => {
    const style = getComputedStyle(host);
    const width = Math.floor(host.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (width <= 0 || (!first && width === drawn)) return;
    [drawn, first] = [width, false];
    const [height, parts, words] = draw(width);
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": words });
    svg.append(...parts);
    host.replaceChildren(svg);
  };
  drawers.set(host, paint);
  observer.observe(host);
  paint();
}

function nothing(host, words) {
  drawers.delete(host);
  const note = document.createElement("p");
  note.className = "nothing";
  note.textContent = words;
  host.replaceChildren(note);
}

/** `rows`: {label, value, text}; bars from 0 to the largest value. */
export function bars(host, rows, words) {
  const most = Math.max(...rows.map(({ value }) => value));
  if (most === 0) return nothing(host, "No messages on these days.");
  keepDrawn(host, (width) => {
    const [left, right, step] = [74, 96, 30];
    const room = Math.max(20, width - left - right);
    const parts = rows.flatMap(({ label, value, text }, at) => {
      const middle = at * step + step / 2;
      return [
        node("text", { x: 0, y: middle + 4, class: "quiet" }, label),
        node("rect", { x: left, y: middle - 8, width: room, height: 16, rx: 4, class: "bar-bed" }),
        node("rect", { x: left, y: middle - 8, width: (room * value) / most, height: 16, rx: 4, class: "bar-fill" }),
        node("text", { x: width, y: middle + 4, class: "end" }, text),
      ];
    });
    return [rows.length * step, parts, words];
  });
}

/** `points`: {label, value}, one a day; `format` makes text of a value. */
export function line(host, points, format, words) {
  if (!points.some(({ value }) => value)) return nothing(host, "None on these days.");
  keepDrawn(host, (width) => {
    const [top, bottom, height] = [10, 150, 178];
    const [least, most] = [Math.min(0, ...points.map(({ value }) => value)), Math.max(0, ...points.map(({ value }) => value))];
    const marks = ticks(least, most, 4);
    const [low, high] = [Math.min(least, marks[0]), Math.max(most, marks.at(-1))];
    const left = 12 + 7 * Math.max(...marks.map((mark) => format(mark).length));
    const x = (at) => (points.length > 1 ? left + ((width - left - 6) * at) / (points.length - 1) : (left + width) / 2);
    const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
    const parts = marks.flatMap((mark) => [
      node("line", { x1: left, x2: width, y1: y(mark), y2: y(mark), class: "grid" }),
      node("text", { x: left - 8, y: y(mark) + 4, class: "quiet end" }, format(mark)),
    ]);
    parts.push(node("polyline", { points: points.map(({ value }, at) => `${x(at)},${y(value)}`).join(" "), class: "curve" }));
    for (const [at, { label, value }] of points.entries()) {
      const dot = node("circle", { cx: x(at), cy: y(value), r: 3, class: "dot" });
      dot.append(node("title", {}, `${label}: ${format(value)}`));
      parts.push(dot);
    }
    const shown = points.length > 1 ? [[0, left, "quiet"], [points.length - 1, width, "quiet end"]] : [[0, x(0), "quiet middle"]];
    parts.push(...shown.map(([at, place, kind]) => node("text", { x: place, y: height - 4, class: kind }, points[at].label)));
    return [height, parts, words];
  });
}

/** `rows`: {label, value, low, high}; `format` makes text of a value. */
export function whiskers(host, rows, format, words) {
  if (!rows.length) return nothing(host, "Too few windows in one of the arms, or nobody is held out: nothing can be said.");
  keepDrawn(host, (width) => {
    const step = 42;
    const marks = ticks(Math.min(0, ...rows.map(({ low }) => low)), Math.max(0, ...rows.map(({ high }) => high)), width < 420 ? 3 : 5);
    const [low, high] = [Math.min(marks[0], ...rows.map((row) => row.low)), Math.max(marks.at(-1), ...rows.map((row) => row.high))];
    const x = (value) => 18 + ((width - 36) * (value - low)) / (high - low);
    const bottom = rows.length * step + 10;
    const parts = marks.flatMap((mark) => [
      node("line", { x1: x(mark), x2: x(mark), y1: 22, y2: bottom, class: mark === 0 ? "zero" : "grid" }),
      node("text", { x: x(mark), y: bottom + 16, class: "quiet middle" }, format(mark)),
    ]);
    for (const [at, row] of rows.entries()) {
      const middle = at * step + 36;
      const end = (value) => node("line", { x1: x(value), x2: x(value), y1: middle - 5, y2: middle + 5, class: "whisker" });
      const dot = node("circle", { cx: x(row.value), cy: middle, r: 5, class: "dot" });
      dot.append(node("title", {}, `${row.label}: ${format(row.value)} (${format(row.low)} to ${format(row.high)})`));
      parts.push(
        node("text", { x: 0, y: middle - 22, class: "quiet" }, row.label),
        node("line", { x1: x(row.low), x2: x(row.high), y1: middle, y2: middle, class: "whisker" }),
        end(row.low),
        end(row.high),
        dot,
      );
    }
    return [bottom + 22, parts, words];
  });
}

/** About `count` round numbers from below `low` to above `high`; 0 is among them if it lies between. */
function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => ((first + at) * step) || 0);
}
