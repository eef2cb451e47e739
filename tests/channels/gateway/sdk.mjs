// One client with the JavaScript SDK, told what to do by JSON lines on standard input; it says what happens on standard
// output. The arguments: the SDK's file, the transports as JSON, the options as JSON.
import readline from "node:readline";

const [file, transports, options] = process.argv.slice(2);
const { Centrifuge } = await import(file);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const { fresh, ...given } = JSON.parse(options);
const client = new Centrifuge(JSON.parse(transports), {
  minReconnectDelay: 20,
  maxReconnectDelay: 100,
  ...(fresh && { getToken: async () => fresh }),
  ...given,
});
client.on("connecting", ({ code }) => say({ event: "connecting", code }));
client.on("connected", ({ transport }) => say({ event: "connected", transport }));
client.on("disconnected", ({ code, reason }) => say({ event: "disconnected", code, reason }));
client.on("error", ({ error }) => say({ event: "error", code: error.code }));
client.on("subscribed", ({ channel, wasRecovering, recovered }) =>
  say({ event: "subscribed", channel, wasRecovering, recovered }),
);
client.on("publication", ({ channel, offset, data }) => say({ event: "publication", channel, offset, data }));
client.connect();

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, method, data } = JSON.parse(line);
  const answer = (result) => say({ id, ...result });
  const fail = (error) => answer({ error: error.code });
  if (method === "rpc") client.rpc(data.method, data.data).then((got) => answer({ result: got.data }), fail);
  else if (method === "send") client.send(data).then(() => answer({}), fail);
  else if (method === "history") client.history(data, { limit: -1 }).then((got) => answer({ result: got }), fail);
}
client.disconnect();
process.exit(0);
