// What the made-up farm holds when it starts.

const now = Date.now();
const before = (seconds) => new Date(now - seconds * 1000).toISOString();
const peer = (name) => `12D3KooW${name.padEnd(44, "x")}`;
const COORDINATOR = "12D3KooWCoordinatorAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

export const PICTURE = `<svg xmlns="http://www.w3.org/2000/svg" width="512" height="512" viewBox="0 0 64 64">
<rect width="64" height="64" fill="#203a43"/><circle cx="46" cy="18" r="9" fill="#f4d58d"/>
<path d="M0 50 18 28l12 14 10-12 24 24v10H0z" fill="#708d81"/><path d="M0 58l22-14 42 18v2H0z" fill="#001427"/></svg>`;

const gpu = (id, name, gib) => ({ id, device: { kind: "gpu", name, memory: gib * 2 ** 30 }, run: null });
const quiet = { labels: {}, workspaces: [], set_aside: [], transfers: [], faults: [] };
const common = { ...quiet, agent_version: "0.1.0", platform: "linux-x86_64", address: "192.168.1.20", seen: before(3) };
const workspace = (state, workflow, rest = {}) => ({
  lockfile: workflow.padEnd(64, "0"), workflows: [workflow], state, step: null, done: 0, total: 0, reason: null, ...rest,
});

export const nodes = [
  {
    ...common,
    peer: peer("Attic"),
    host_name: "attic",
    connected: true,
    draining: false,
    engine: { kind: "attached", comfyui_version: "0.8.0" },
    labels: { room: "attic", owner: "mira" },
    slots: [gpu(0, "NVIDIA GeForce RTX 4090", 24), gpu(1, "NVIDIA GeForce RTX 3090", 24)],
    blobs: 41,
  },
  {
    ...common,
    peer: peer("Studio"),
    host_name: "studio-mac",
    connected: true,
    draining: false,
    platform: "macos-aarch64",
    engine: { kind: "builtin" },
    slots: [{ id: 0, device: { kind: "cpu", threads: 12 }, run: null }],
    blobs: 3,
  },
  {
    ...common,
    peer: peer("Cellar"),
    host_name: "cellar",
    connected: true,
    draining: false,
    engine: { kind: "managed" },
    slots: [gpu(0, "NVIDIA GeForce RTX 4090", 24)],
    set_aside: [
      { workflow: "portrait@1", reason: "op `5` (KSampler) raised torch.OutOfMemoryError: Allocation on device", others_first: true },
    ],
    workspaces: [
      workspace("proven", "fox-in-snow@3"),
      workspace("loaded", "portrait@1"),
      workspace("waiting", "landscape@2"),
      workspace("proven", "poster@7"),
      workspace("proven", "restore@1"),
      workspace("preparing", "upscale@1", { step: "models", done: 4.2 * 2 ** 30, total: 6.4 * 2 ** 30 }),
      workspace("preparing", "sketch@1", { step: "proof" }),
      workspace("failed", "video@4", {
        step: "python",
        reason: "resolving the packages: `uv` ended with 1; its last lines:\n  × No solution found when resolving dependencies:\n  ╰─▶ Because only torch<2.9 is available and you require torch==2.9.1, your requirements are unsatisfiable.",
      }),
      workspace("refused", "mask@2", {
        reason: `it is signed by publisher ${"5e".repeat(32)}, whom this node does not trust: its owner can run \`comfy-farm publisher trust ${"5e".repeat(32)}\``,
      }),
    ],
    blobs: 118,
  },
  {
    ...common,
    peer: peer("Closet"),
    host_name: "closet",
    connected: true,
    draining: true,
    engine: { kind: "builtin" },
    slots: [{ id: 0, device: { kind: "cpu", threads: 4 }, run: null }],
    blobs: 1,
  },
  {
    ...common,
    peer: peer("Laptop"),
    host_name: "old-laptop",
    connected: false,
    draining: false,
    seen: before(5400),
    engine: { kind: "builtin" },
    slots: [{ id: 0, device: { kind: "cpu", threads: 8 }, run: null }],
    blobs: 0,
  },
];

const image = { name: "image", kind: "image", media_type: "image/png", many: true };
const deployed = { bundle: "b1".repeat(32), lockfile: "10".repeat(32), requirements: { classes: [], models: [], accept_attached: true } };

function workflow(name, version, current, inputs, notes = []) {
  const url = `/v1/workflows/${name}@${version}`;
  const urls = { url: `${url}/jobs`, openapi_url: `${url}/openapi.json` };
  return { ...deployed, name, version, current, ...urls, deployed: before(86400 / version), inputs, outputs: [image], notes };
}

const prompt = { name: "prompt", title: "Prompt", type: "string", required: false, default: "a red fox in deep snow" };
const steps = { name: "steps", title: "Steps", type: "integer", required: false, default: 20, minimum: 1, maximum: 50 };
const seed = { name: "seed", title: "Seed", type: "integer", required: true, minimum: 0 };
const cfg = { name: "cfg", title: "Guidance", type: "number", required: false, default: 7.5, minimum: 0, maximum: 30 };
const sampler = { name: "sampler", title: "Sampler", type: "choice", required: false, default: "euler", values: ["euler", "dpmpp_2m", "ddim"] };
const tiled = { name: "tiled", title: "Tiled decoding", type: "boolean", required: false, default: true };
const picture = { name: "picture", title: "Picture", type: "image", required: true, media: "image/*" };

export const workflows = [
  workflow("fox-in-snow", 3, true, [prompt, seed, steps, cfg, sampler, tiled], ["a model has no sha256: it is only used where it lies"]),
  workflow("fox-in-snow", 2, false, [prompt, seed, steps]),
  workflow("upscale", 1, true, [picture, steps]),
];

export const candidates = {
  inputs: [
    { input: "6.text", title: "Positive", value: "a red fox in deep snow, golden hour, 35 mm" },
    { input: "7.text", title: "Negative", value: "blurry" },
    { input: "3.seed", title: "KSampler", value: 156680208700286 },
    { input: "3.steps", title: "KSampler", value: 20 },
  ],
  outputs: [{ node: "9", title: "Save Image", class: "SaveImage" }],
};

function job(index, state, rest) {
  const id = `019abe0${index}-11aa-7c3d-9e10-4b2d7a91c${String(index).padStart(3, "0")}`;
  const urls = { self: `/v1/jobs/${id}`, events: `/v1/jobs/${id}/events`, cancel: `/v1/jobs/${id}/cancel` };
  const none = { queue_position: null, waits: [], run: null, failures: [], outputs: [], error: null, fetched: [] };
  const times = { submitted: before(300 - index * 20), started: null, ended: null };
  return { id, workflow: "fox-in-snow@3", state, priority: 50, ...times, ...none, coordinator: COORDINATOR, urls, ...rest };
}

const traceback = `Traceback (most recent call last):
  File "execution.py", line 518, in execute
    output_data, output_ui = get_output_data(obj, input_data_all)
  File "nodes.py", line 1519, in sample
    return common_ksampler(model, seed, steps, cfg, sampler_name)
RuntimeError: mat1 and mat2 shapes cannot be multiplied (154x768 and 2048x640)`;

export const jobs = [
  job(9, "queued", {
    stuck: true,
    queue_position: 2,
    workflow: "upscale@1",
    waits: [
      { node: nodes[0].peer, reason: "lacks the model `upscale_models/4x-UltraSharp.pth`" },
      { node: nodes[1].peer, reason: "its engine has no op of class `ImageUpscaleWithModel`" },
      { node: nodes[2].peer, reason: "draining" },
    ],
  }),
  job(8, "queued", { queue_position: 1 }),
  job(7, "queued", { queue_position: 0 }),
  job(6, "queued", { queue_position: 0 }),
  job(4, "failed", {
    started: before(200),
    ended: before(188),
    failures: [{ run: "r", node: nodes[1].peer, kind: "op_failed", detail: "shapes cannot be multiplied" }],
    error: {
      kind: "op_failed",
      detail: "RuntimeError: mat1 and mat2 shapes cannot be multiplied (154x768 and 2048x640); the checkpoint and the LoRA are of different families",
      op: { id: "12", class: "KSampler", traceback },
    },
    fetched: [
      { blob: "77aa01".padEnd(64, "0"), size: 6.4 * 2 ** 30, from: nodes[0].peer, bytes: 4.1 * 2 ** 30 },
      { blob: "77aa01".padEnd(64, "0"), size: 6.4 * 2 ** 30, from: nodes[2].peer, bytes: 2.3 * 2 ** 30 },
      { blob: "19cd22".padEnd(64, "0"), size: 5 * 2 ** 20, from: COORDINATOR, bytes: 5 * 2 ** 20 },
    ],
  }),
  job(3, "canceled", { ended: before(240) }),
];
