// The two canvases: the city with everybody in it, and the floor plan of one shop.
//
// What stands still is painted once per size and colour scheme into a layer of its own; a frame copies it and paints the
// dots. Positions come once a second and are moved to smoothly.

const METRES_PER_DEGREE = 111_195;
const MOVE_MS = 1000;
const TRAIL = 9;
const PULSE_MS = 1600;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Colours of the page, by the name of their CSS variable. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

class View {
  constructor(canvas, scene) {
    this.canvas = canvas;
    this.scene = scene;
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    this.dots = new Map();
    this.origin = scene.stores[0];
    this.turn = 0;
    this.stale = true;
    new ResizeObserver(() => (this.stale = true)).observe(canvas);
    dark.addEventListener("change", () => (this.stale = true));
  }

  /** Metres east and south of the origin, turned by `this.turn` (radians) around it. */
  metres(lat, lng) {
    const east = (lng - this.origin.lng) * METRES_PER_DEGREE * Math.cos((this.origin.lat * Math.PI) / 180);
    const south = (this.origin.lat - lat) * METRES_PER_DEGREE;
    const [sin, cos] = [Math.sin(this.turn), Math.cos(this.turn)];
    return [east * cos - south * sin, east * sin + south * cos];
  }

  pixels(lat, lng) {
    const [x, y] = this.metres(lat, lng);
    return [x * this.scale + this.left, y * this.scale + this.top];
  }

  /** Fit `bounds` (metres: x from, y from, x to, y to) into the canvas. */
  fit([x0, y0, x1, y1], padding) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.scale = Math.min((width - 2 * padding) / (x1 - x0), (height - 2 * padding) / (y1 - y0));
    this.left = width / 2 - ((x0 + x1) / 2) * this.scale;
    this.top = height / 2 - ((y0 + y1) / 2) * this.scale;
  }

  /** Repaint the layer if size or colours changed. */
  refresh() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return false;
    if (!this.stale && this.ratio === ratio) return true;
    this.ratio = ratio;
    this.stale = false;
    for (const canvas of [this.canvas, this.layer]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.people = [0, 1, 2].map((index) => colour(`person-${index}`));
    this.dotColour = colour("dot");
    this.cardColour = colour("card");
    const context = this.layer.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paint(context, width, height);
    return true;
  }

  move(shoppers) {
    const now = performance.now();
    const present = new Set();
    for (const { id, lat, lng, phone } of shoppers) {
      present.add(id);
      const dot = this.dots.get(id);
      if (!dot) {
        this.dots.set(id, { phone, from: [lat, lng], to: [lat, lng], since: now, trail: [] });
      } else if (dot.to[0] !== lat || dot.to[1] !== lng) {
        dot.trail.push(dot.to);
        if (dot.trail.length > TRAIL) dot.trail.shift();
        dot.from = positionOf(dot, now);
        dot.to = [lat, lng];
        dot.since = now;
      }
    }
    for (const id of this.dots.keys()) if (!present.has(id)) this.dots.delete(id);
  }

  drawFences(context, kinds, paint) {
    for (const feature of this.scene.fences.features) {
      if (!kinds.includes(feature.properties.kind)) continue;
      context.beginPath();
      if (feature.geometry.type === "Point") {
        const [lng, lat] = feature.geometry.coordinates;
        const [x, y] = this.pixels(lat, lng);
        context.arc(x, y, feature.properties.radius_m * this.scale, 0, 2 * Math.PI);
      } else {
        const polygons = feature.geometry.type === "Polygon" ? [feature.geometry.coordinates] : feature.geometry.coordinates;
        for (const ring of polygons.flat()) {
          ring.forEach(([lng, lat], index) => context[index ? "lineTo" : "moveTo"](...this.pixels(lat, lng)));
          context.closePath();
        }
      }
      paint(feature);
    }
  }

  drawDots(now, radius, labels) {
    const context = this.context;
    const ordered = [...this.dots.values()].sort((a, b) => (a.phone === null) - (b.phone === null)).reverse();
    for (const dot of ordered) {
      const [x, y] = this.pixels(...positionOf(dot, now));
      const known = dot.phone !== null && dot.phone !== undefined;
      const ink = known ? this.people[dot.phone] : this.dotColour;
      this.drawTrail(dot, [x, y], ink, known);
      if (known && dot.pulse && now - dot.pulse < PULSE_MS && !calm.matches) {
        const part = (now - dot.pulse) / PULSE_MS;
        context.globalAlpha = 1 - part;
        context.strokeStyle = ink;
        context.lineWidth = 2;
        context.beginPath();
        context.arc(x, y, radius * (1.6 + 4 * part), 0, 2 * Math.PI);
        context.stroke();
        context.globalAlpha = 1;
      }
      context.fillStyle = ink;
      context.beginPath();
      context.arc(x, y, known ? radius * 1.75 : radius, 0, 2 * Math.PI);
      context.fill();
      if (!known) continue;
      context.lineWidth = 2;
      context.strokeStyle = this.cardColour;
      context.stroke();
      if (labels) this.drawLabel(this.scene.phones[dot.phone].name, x, y + radius * 1.75 + 13, ink);
    }
  }

  drawTrail(dot, end, ink, known) {
    const context = this.context;
    const points = [...dot.trail.map((place) => this.pixels(...place)), end];
    context.strokeStyle = ink;
    context.lineCap = "round";
    context.lineWidth = known ? 2.5 : 1.5;
    for (let index = 1; index < points.length; index++) {
      context.globalAlpha = ((known ? 0.55 : 0.28) * index) / points.length;
      context.beginPath();
      context.moveTo(...points[index - 1]);
      context.lineTo(...points[index]);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  drawLabel(text, x, y, ink) {
    const context = this.context;
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineJoin = "round";
    context.lineWidth = 4;
    context.strokeStyle = this.cardColour;
    context.strokeText(text, x, y);
    context.fillStyle = ink;
    context.fillText(text, x, y);
  }

  begin() {
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.context.drawImage(this.layer, 0, 0);
    this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }
}

function positionOf(dot, now) {
  const part = calm.matches ? 1 : Math.min((now - dot.since) / MOVE_MS, 1);
  return [dot.from[0] + (dot.to[0] - dot.from[0]) * part, dot.from[1] + (dot.to[1] - dot.from[1]) * part];
}

function boundsOf(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

export class CityView extends View {
  paint(context, width, height) {
    const ends = (this.scene.streets ?? []).flat().map(([lat, lng]) => this.metres(lat, lng));
    const shops = this.scene.stores.map(({ lat, lng }) => this.metres(lat, lng));
    const reach = Math.max(0, ...this.scene.fences.features.map(({ properties }) => properties.radius_m ?? 0));
    const around = shops.flatMap(([x, y]) => [[x - reach, y - reach], [x + reach, y + reach]]);
    this.fit(boundsOf([...ends, ...around]), 8);
    context.fillStyle = colour("block");
    context.fillRect(0, 0, width, height);
    context.strokeStyle = colour("street");
    context.lineCap = "round";
    context.lineWidth = Math.max(16 * this.scale, 3);
    for (const [from, to] of this.scene.streets ?? []) {
      context.beginPath();
      context.moveTo(...this.pixels(...from));
      context.lineTo(...this.pixels(...to));
      context.stroke();
    }
    context.lineWidth = 1.2;
    context.setLineDash([4, 4]);
    this.drawFences(context, ["vicinity"], () => {
      context.fillStyle = colour("vicinity");
      context.strokeStyle = colour("vicinity-line");
      context.fill();
      context.stroke();
    });
    context.setLineDash([]);
    context.lineWidth = 1;
    this.drawFences(context, ["store"], () => {
      context.fillStyle = colour("building");
      context.strokeStyle = colour("building-line");
      context.fill();
      context.stroke();
    });
    this.drawFences(context, ["department"], () => {
      context.fillStyle = colour("department");
      context.fill();
    });
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineJoin = "round";
    for (const { name, lat, lng } of this.scene.stores) {
      const half = context.measureText(name).width / 2 + 4;
      const [middle, y] = this.pixels(lat, lng);
      const x = Math.min(Math.max(middle, half), width - half);
      context.lineWidth = 4;
      context.strokeStyle = colour("block");
      context.strokeText(name, x, y - 24 * this.scale - 10);
      context.fillStyle = colour("ink");
      context.fillText(name, x, y - 24 * this.scale - 10);
    }
  }

  draw(now) {
    if (!this.refresh()) return;
    this.begin();
    this.drawDots(now, 3, true);
  }

  /** A ring around the shopper who just got a push. */
  pulse(id) {
    const dot = this.dots.get(id);
    if (dot) dot.pulse = performance.now();
  }

  drawLegend(list) {
    const entries = this.scene.phones.map(({ name }, index) => [name, `var(--person-${index})`, ""]);
    entries.push(["other shoppers", "var(--dot)", ""], ["near a shop", "", "vicinity"]);
    for (const [text, background, kind] of entries) {
      const item = document.createElement("li");
      const mark = document.createElement("i");
      mark.className = kind;
      if (background) mark.style.background = background;
      item.append(mark, text);
      list.append(item);
    }
  }
}

export class FloorView extends View {
  constructor(canvas, select, scene) {
    super(canvas, scene);
    this.store = scene.staff?.store ?? scene.stores[0].id;
    for (const { id, name } of scene.stores) select.append(new Option(name, id, false, id === this.store));
    select.addEventListener("change", () => {
      this.store = select.value;
      this.stale = true;
    });
  }

  paint(context, width, height) {
    const building = this.scene.fences.features.find(
      ({ properties }) => properties.store === this.store && properties.kind === "store",
    );
    const ring = building.geometry.coordinates[0];
    this.turn = 0;
    this.turn = -levelOf(ring.map(([lng, lat]) => this.metres(lat, lng)));
    this.fit(boundsOf(ring.map(([lng, lat]) => this.metres(lat, lng))), 14);
    context.fillStyle = colour("block");
    context.fillRect(0, 0, width, height);
    const here = (feature) => feature.properties.store === this.store;
    context.lineWidth = 2;
    this.drawFences(context, ["store"], (feature) => {
      context.fillStyle = colour(here(feature) ? "card" : "block");
      context.strokeStyle = colour("building-line");
      context.fill();
      context.stroke();
    });
    context.lineWidth = 1;
    this.drawFences(context, ["department"], (feature) => {
      context.fillStyle = colour("department");
      context.strokeStyle = colour("line");
      context.fill();
      context.stroke();
    });
    context.fillStyle = colour("display");
    for (const { store, lat, lng } of this.scene.displays) {
      if (store !== this.store) continue;
      const [x, y] = this.pixels(lat, lng);
      context.beginPath();
      context.roundRect(x - 2.5, y - 2.5, 5, 5, 1.5);
      context.fill();
    }
    for (const feature of this.scene.fences.features) {
      if (feature.properties.kind === "department" && here(feature)) this.nameDepartment(context, feature);
    }
  }

  nameDepartment(context, feature) {
    const ring = feature.geometry.coordinates[0].map(([lng, lat]) => this.pixels(lat, lng));
    const [x0, y0, x1, y1] = boundsOf(ring);
    const place = [feature.properties.name, (x0 + x1) / 2, (y0 + y1) / 2 + 4];
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineJoin = "round";
    context.lineWidth = 5;
    context.strokeStyle = colour("department");
    context.strokeText(...place);
    context.fillStyle = colour("soft");
    context.fillText(...place);
  }

  draw(now) {
    if (!this.refresh()) return;
    this.begin();
    this.drawDots(now, 4, true);
  }

  /** Where a dot is, in words: the smallest fence around it. */
  nameOfPlace({ lat, lng }) {
    const point = this.metres(lat, lng);
    const around = this.scene.fences.features.filter(({ properties, geometry }) => {
      if (geometry.type === "Point") {
        const [x, y] = this.metres(geometry.coordinates[1], geometry.coordinates[0]);
        return Math.hypot(x - point[0], y - point[1]) <= properties.radius_m;
      }
      return inside(geometry.coordinates[0].map(([a, b]) => this.metres(b, a)), point);
    });
    const found = Object.fromEntries(around.map(({ properties }) => [properties.kind, properties]));
    const shop = this.scene.stores.find(({ id }) => id === (found.store ?? found.vicinity)?.store)?.name;
    if (found.department) return `${found.department.name}, ${shop}`;
    if (found.store) return `In ${shop}`;
    return found.vicinity ? `Near ${shop}` : "Out in the city";
  }
}

/** The angle of a building's front: that of its longest wall, within 45 degrees of level. */
function levelOf(corners) {
  const walls = corners.slice(1).map(([x, y], index) => [x - corners[index][0], y - corners[index][1]]);
  const [dx, dy] = walls.reduce((longest, wall) => (Math.hypot(...wall) > Math.hypot(...longest) ? wall : longest));
  const quarter = Math.PI / 2;
  const angle = Math.atan2(dy, dx);
  return angle - quarter * Math.round(angle / quarter);
}

function inside(ring, [x, y]) {
  let odd = false;
  for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
    const [xi, yi] = ring[i];
    const [xj, yj] = ring[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}
