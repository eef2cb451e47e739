// Clients with the JavaScript SDK, told what to do by JSON lines; they say what happens in JSON lines. Node and a page
// run the same file: in Node the lines are standard input and output, and the argument is the SDK's file.

// One client. `tokens` are used up one after the other.
function makeClient(Centrifuge, { url, tokens, ping_delay_s }, say) {
  const client = new Centrifuge(url, {
    token: tokens.shift(),
    getToken: async () => {
      say({ event: "token" });
      return tokens.shift() ?? "";
    },
    minReconnectDelay: 20,
    maxReconnectDelay: 100,
    maxServerPingDelay: ping_delay_s * 1000,
  });
  client.on("connecting", ({ code }) => say({ event: "connecting", code }));
  client.on("connected", (connected) => say({ event: "connected", given_id: connected.client }));
  client.on("disconnected", ({ code }) => say({ event: "disconnected", code }));
  follow(client, false, say);
  return client;
}

// A client tells of its server-side subscriptions what a subscription of its own tells of itself.
function follow(source, own, say) {
  source.on("subscribed", ({ channel, wasRecovering, recovered }) =>
    say({ event: "subscribed", own, channel, recovering: wasRecovering, recovered }),
  );
  source.on("unsubscribed", ({ channel, code }) => say({ event: "unsubscribed", own, channel, ...(own && { code }) }));
  source.on("publication", ({ channel, offset, data }) => say({ event: "publication", own, channel, offset, data }));
}

function publications(found) {
  return { offset: found.offset, epoch: found.epoch, publications: found.publications.map((p) => [p.offset, p.data]) };
}

const METHODS = {
  connect: (client) => client.connect(),
  disconnect: (client) => client.disconnect(),
  subscribe: (client, { channel }, say) => {
    const subscription = client.getSubscription(channel) ?? client.newSubscription(channel);
    if (subscription.listeners("subscribed").length === 0) follow(subscription, true, say);
    subscription.subscribe();
  },
  unsubscribe: (client, { channel }) => client.getSubscription(channel).unsubscribe(),
  publish: (client, { channel, data }) => client.publish(channel, data).then(() => null),
  presence: (client, { channel }) =>
    client.presence(channel).then(({ clients }) => Object.values(clients).map((each) => [each.client, each.user])),
  presence_stats: (client, { channel }) =>
    client.presenceStats(channel).then((found) => [found.numClients, found.numUsers]),
  history: (client, { channel, limit, since, reverse }) =>
    client.history(channel, { limit, since: since ?? undefined, reverse }).then(publications),
  rpc: (client, { name, data }) => client.rpc(name, data).then((found) => found.data),
  // All in one frame.
  rpcs: (client, { calls }) => {
    client.startBatching();
    const answers = calls.map(([name, data]) =>
      client.rpc(name, data).then(
        (found) => ({ result: found.data }),
        (error) => ({ error: error.code }),
      ),
    );
    client.stopBatching();
    return Promise.all(answers);
  },
};

// Takes lines; `write` gets the answers (with the line's id) and the events (with the client's name).
export function makeDriver(Centrifuge, write) {
  const clients = new Map();
  return async (line) => {
    const { id, client: name, method, ...told } = JSON.parse(line);
    const say = (what) => write(JSON.stringify({ client: name, ...what }));
    try {
      let result = null;
      if (method === "make") clients.set(name, makeClient(Centrifuge, told, say));
      else result = await METHODS[method](clients.get(name), told, say);
      write(JSON.stringify({ id, result: result ?? null }));
    } catch (error) {
      write(JSON.stringify({ id, error: error.code ?? String(error) }));
    }
  };
}

if (typeof process !== "undefined") {
  const { createInterface } = await import("node:readline");
  const { Centrifuge } = await import(process.argv[2]);
  const take = makeDriver(Centrifuge, (line) => process.stdout.write(`${line}\n`));
  for await (const line of createInterface({ input: process.stdin })) take(line);
  process.exit(0);
}
