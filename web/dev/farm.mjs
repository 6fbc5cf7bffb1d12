// A made-up farm for work on the page: `node dev/farm.mjs`, then `npm run dev`, and any key signs in.
// It answers the routes that the page uses, in the API's shapes, and keeps a few runs moving. Not shipped, and no
// test relies on it: what the API really answers is `openapi.json`. An argument `empty` makes a farm with nothing.

import { createServer } from "node:http";
import { candidates, jobs, nodes, PICTURE, workflows } from "./sample.mjs";

const EMPTY = process.argv.includes("empty");
const state = EMPTY ? { nodes: [], jobs: [], workflows: [] } : { nodes, jobs, workflows };
const COORDINATOR = "12D3KooWCoordinatorAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const PHASES = ["fetching", "preparing", "executing", "collecting"];
const listeners = new Set();
let number = 100;

function tell(event, body, durable = false) {
  const id = durable ? `id: ${(number += 1)}\n` : "";
  const data = JSON.stringify({ at: new Date().toISOString(), event, ...body });
  for (const listener of listeners) listener.write(`${id}event: ${event}\ndata: ${data}\n\n`);
}

function freeSlot() {
  const ready = state.nodes.filter((node) => node.connected && !node.draining);
  return ready.flatMap((node) => node.slots.map((slot) => ({ node, slot }))).find(({ slot }) => slot.run === null);
}

function step() {
  const free = freeSlot();
  const next = free && state.jobs.filter((job) => job.state === "queued" && !job.stuck).at(-1);
  if (next) {
    const run = { id: crypto.randomUUID(), node: free.node.peer, slot: free.slot.id, phase: "leased", progress: null };
    Object.assign(next, { state: "running", started: new Date().toISOString(), run, queue_position: null, waits: [] });
    free.slot.run = { job: next.id, ...run };
    tell("started", { job: next.id, run });
  }
  for (const job of state.jobs.filter((job) => job.state === "running")) {
    const fraction = (job.run.progress?.fraction ?? 1) + 0.11;
    if (fraction > 1 && job.run.phase === "collecting") end(job, "succeeded");
    else {
      const phase = fraction > 1 ? PHASES[PHASES.indexOf(job.run.phase) + 1] : job.run.phase;
      const detail = phase === "executing" ? "KSampler" : null;
      job.run = { ...job.run, phase, progress: { fraction: fraction > 1 ? 0 : fraction, detail } };
      tell("progress", { job: job.id, run: job.run });
    }
  }
}

function end(job, how) {
  for (const slot of state.nodes.flatMap((node) => node.slots)) if (slot.run?.job === job.id) slot.run = null;
  const made = how === "succeeded" ? [0, 1].map((index) => output(job.id, index)) : [];
  Object.assign(job, { state: how, ended: new Date().toISOString(), run: null, outputs: made, waits: [], queue_position: null });
  tell("ended", { job: job.id, state: how }, true);
}

function output(id, index) {
  const url = `/v1/jobs/${id}/outputs/image/${index}`;
  const file = { file_name: `fox_${index}.svg`, media_type: "image/svg+xml", size: PICTURE.length, blake3: "ab".repeat(32) };
  return { output: "image", index, ...file, url };
}

function submit(workflow, body) {
  const input = JSON.parse(body).input ?? {};
  if (Number(input.steps) > 50) {
    const errors = [{ field: "steps", rule: "maximum", message: "is 80, and the most that is taken is 50" }];
    return [422, { title: "invalid or unknown fields", detail: "`steps` is too large", errors }];
  }
  const id = `019abf00-${Date.now().toString(16).slice(-4)}-7000-8000-${Math.random().toString(16).slice(2, 14)}`;
  const urls = { self: `/v1/jobs/${id}`, events: `/v1/jobs/${id}/events`, cancel: `/v1/jobs/${id}/cancel` };
  const job = { ...jobs[0], id, workflow, state: "queued", submitted: new Date().toISOString(), started: null, ended: null };
  state.jobs.unshift({ ...job, stuck: false, error: null, failures: [], outputs: [], waits: [], run: null, urls });
  tell("submitted", { job: id, workflow }, true);
  return [202, state.jobs[0]];
}

function deploy(query) {
  if (!query.has("output")) return [422, { detail: "the workflow exposes no output", candidates }];
  const workflow = { ...workflows[0], name: query.get("name"), version: 1, current: true };
  state.workflows.push(workflow);
  const lacks = { kind: "model", name: "checkpoints/sdxl.safetensors", detail: "no node lists it and no URL gives it" };
  return [201, { ...workflow, missing: [lacks] }];
}

function answer(method, path, body, query) {
  const job = state.jobs.find(({ id }) => path.startsWith(`/v1/jobs/${id}`));
  const node = state.nodes.find(({ peer }) => path.startsWith(`/v1/nodes/${peer}`));
  const count = (word) => state.jobs.filter((job) => job.state === word).length;
  if (path === "/v1/farm") {
    const farm = { farm: "9f3c51d0a7".repeat(6), coordinator: COORDINATOR, version: "0.1.0", epoch: 4 };
    return [200, { ...farm, queued: count("queued"), running: count("running"), nodes: state.nodes.length, slots: 4 }];
  }
  if (path === "/v1/nodes") return [200, { nodes: state.nodes }];
  if (path === "/v1/workflows" && method === "POST") return deploy(query);
  if (path === "/v1/workflows") return [200, { workflows: state.workflows }];
  if (path === "/v1/jobs") return [200, { jobs: state.jobs, next: null }];
  if (path === "/v1/assets") return [201, { hash: "cd".repeat(32), size: body.length }];
  if (path === "/v1/invites") {
    const ticket = `farm1${"qx7k2m9d".repeat(14)}`;
    return [200, { ticket, expires: new Date(Date.now() + 864e5).toISOString(), loopback_only: true, addresses: [] }];
  }
  if (node && method === "POST") {
    node.draining = path.endsWith("/drain");
    tell("node", { peer: node.peer });
    return [200, node];
  }
  if (job && path.endsWith("/cancel")) {
    end(job, "canceled");
    return [200, job];
  }
  if (job) return [200, job];
  const called = /^\/v1\/workflows\/([^/]+)\/jobs$/.exec(path);
  return called ? submit(called[1], body) : [404, { title: "not found", detail: `nothing is at \`${path}\`` }];
}

createServer(async (request, response) => {
  const { pathname: path, searchParams } = new URL(request.url, "http://farm");
  if (path.endsWith("/events")) {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(": hello\n\n");
    if (path !== "/v1/events") return response.end();
    listeners.add(response);
    return response.on("close", () => listeners.delete(response));
  }
  if (path.includes("/outputs/")) return response.writeHead(200, { "content-type": "image/svg+xml" }).end(PICTURE);
  const body = Buffer.concat(await request.toArray()).toString();
  const [status, json] = answer(request.method, path, body, searchParams);
  return response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(json));
}).listen(8788, "127.0.0.1", () => console.log("a made-up farm at http://127.0.0.1:8788"));

setInterval(step, 700);
setInterval(() => listeners.forEach((listener) => listener.write(": alive\n\n")), 15_000);
