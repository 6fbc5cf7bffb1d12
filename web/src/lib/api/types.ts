// The shapes that `/v1` answers with.

export type JobState = "queued" | "running" | "succeeded" | "failed" | "canceled" | "expired";
export type Phase = "leased" | "fetching" | "preparing" | "executing" | "collecting";

export interface Progress {
  fraction: number;
  detail?: string | null;
}

export interface Run {
  id: string;
  node: string;
  slot: number;
  phase: Phase;
  progress?: Progress | null;
}

export interface Output {
  output: string;
  index: number;
  file_name: string;
  media_type: string;
  size: number;
  blake3: string;
  url: string;
}

export interface RunError {
  kind: string;
  detail: string;
  op?: { id: string; class: string; traceback?: string | null } | null;
}

export interface Fetched {
  blob: string;
  size: number;
  from: string;
  bytes: number;
}

export interface Job {
  id: string;
  workflow: string;
  state: JobState;
  priority: number;
  submitted: string;
  started?: string | null;
  ended?: string | null;
  queue_position?: number | null;
  waits: { node?: string | null; reason: string }[];
  run?: Run | null;
  failures: { run: string; node: string; kind: string; detail: string }[];
  outputs: Output[];
  error?: RunError | null;
  fetched: Fetched[];
  coordinator: string;
  urls: { self: string; events: string; cancel: string };
}

export interface Slot {
  id: number;
  device: { kind: "cpu"; threads: number } | { kind: "gpu"; name: string; memory: number };
  run?: (Run & { job: string }) | null;
}

export interface Node {
  peer: string;
  host_name: string;
  connected: boolean;
  draining: boolean;
  engine: { kind: "builtin" } | { kind: "attached"; comfyui_version: string };
  agent_version: string;
  platform: string;
  labels: Record<string, string>;
  address?: string | null;
  slots: Slot[];
  blobs: number;
  seen: string;
}

export interface Input {
  name: string;
  title: string;
  type: string;
  required: boolean;
  default?: unknown;
  minimum?: number | null;
  maximum?: number | null;
  values?: unknown[] | null;
  media?: string | null;
}

export interface WorkflowOutput {
  name: string;
  kind: string;
  media_type?: string | null;
  many: boolean;
}

export interface Workflow {
  name: string;
  version: number;
  current: boolean;
  url: string;
  openapi_url: string;
  deployed: string;
  inputs: Input[];
  outputs: WorkflowOutput[];
  notes: string[];
}

export interface FarmSummary {
  farm: string;
  coordinator: string;
  version?: string;
  epoch: number;
  queued: number;
  running: number;
  nodes: number;
  slots: number;
}

export interface Invite {
  ticket: string;
  expires: string;
  loopback_only: boolean;
}

export interface FieldError {
  field: string;
  rule: string;
  message: string;
}

export interface Jobs {
  jobs: Job[];
  next: string | null;
}

export interface Nodes {
  nodes: Node[];
}

export interface Workflows {
  workflows: Workflow[];
}

/** An event of one job's stream. */
export type JobEvent = { at: string } & (
  | { event: "submitted"; job: string; workflow: string }
  | { event: "started"; job: string; run: Run }
  | { event: "requeued"; job: string; reason: string }
  | { event: "ended"; job: string; state: JobState }
);
