// The demo page: fetches the scene, connects one Centrifuge client per phone, tablet and the live map, and hands what
// arrives to the views. Nothing here decides anything: every number shown was counted by the demo's driver.

import { Counters } from "./counters.js";
import { Footfall } from "./footfall.js";
import { CityView, FloorView } from "./map.js";
import { News } from "./news.js";
import { Phone } from "./phone.js";
import { Tablet } from "./tablet.js";
import { WhyNot } from "./whynot.js";

const RETRY_MS = 1000;

async function fetchScene() {
  for (;;) {
    try {
      const answer = await fetch("scene.json", { cache: "no-store" });
      if (answer.ok) return await answer.json();
    } catch {
      // The server is starting, or starting again.
    }
    setStatus("waiting", "Waiting for the shoppers");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function setStatus(state, text) {
  const status = document.getElementById("status");
  if (status.textContent === text) return;
  status.dataset.state = state;
  status.textContent = text;
}

/** A connected client; `tokenOf` finds its token in a scene, also in a fresh one when the first has expired. */
function connect(scene, tokenOf, onPublication) {
  const client = new globalThis.Centrifuge(scene.gateway_url, {
    token: tokenOf(scene),
    getToken: async () => tokenOf(await fetchScene()),
    minReconnectDelay: 200,
    maxReconnectDelay: 3000,
  });
  client.on("publication", (publication) => onPublication(publication.data));
  client.connect();
  return client;
}

async function main() {
  const scene = await fetchScene();
  const city = new CityView(document.getElementById("city"), scene);
  const floor = new FloorView(document.getElementById("floor"), document.getElementById("shop"), scene);
  const [people, note] = [document.getElementById("footfall"), document.getElementById("footfall-note")];
  const footfall = new Footfall(people, note, document.getElementById("shop"));
  const counters = new Counters(document.getElementById("counters"));
  const news = new News(document.getElementById("news"));
  const whyNot = new WhyNot(...["why-total", "reasons", "why"].map((id) => document.getElementById(id)));
  city.drawLegend(document.getElementById("legend"));

  const phones = scene.phones.map((person, index) => {
    const phone = new Phone(person, index);
    document.getElementById("phones").append(phone.element);
    phone.client = connect(scene, (fresh) => fresh.phones[index].token, (push) => {
      phone.receive(push);
      if (push.kind === "offer") city.pulse(person.customer);
    });
    return phone;
  });

  if (scene.staff) {
    const tablet = new Tablet(document.getElementById("tablet"), scene.staff, (fence) => {
      const found = scene.fences.features.find(({ properties }) => properties.id === fence);
      return found?.properties.name ?? "";
    });
    tablet.client = connect(scene, (fresh) => fresh.staff.token, (push) => tablet.receive(push));
  }

  const live = connect(scene, (fresh) => fresh.live?.token ?? fresh.live_token, (state) => {
    city.move(state.shoppers);
    floor.move(state.shoppers);
    footfall.show(state.footfall);
    counters.show(state.counters);
    news.add(state.feed);
    whyNot.show(state.why_not);
    for (const [index, phone] of phones.entries()) {
      const dot = state.shoppers.find((shopper) => shopper.phone === index);
      if (dot) phone.at(floor.nameOfPlace(dot));
    }
  });
  live.on("connected", () => setStatus("live", "Live"));
  live.on("connecting", () => setStatus("waiting", "Reconnecting"));
  live.on("disconnected", () => setStatus("waiting", "Disconnected"));

  // One clock for everything that moves or counts down.
  const frame = (now) => {
    city.draw(now);
    floor.draw(now);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  setInterval(() => phones.forEach((phone) => phone.tick(Date.now())), 500);
}

main();
