// What the page knows of the farm, as a pure reducer: a message in, the next state and what has to be asked out.
// Not here: requests and the event stream (`farm.svelte.ts`).

import type { FarmEvent, FarmSummary, Job, JobState, Node, Run, Workflow } from "./api/types";

/** How the page hears of changes. */
export type Link = "connecting" | "live" | "polling" | "lost";

/** Everything that the page shows of the farm. */
export interface Farm {
  link: Link;
  summary: FarmSummary | null;
  nodes: Node[];
  workflows: Workflow[];
  jobs: Record<string, Job>;
  /** The number of the last durable event, from which the stream resumes. */
  cursor: string | null;
  /** Whether a first snapshot has arrived. */
  loaded: boolean;
}

/** What changes the state. */
export type Message =
  | { type: "link"; link: Link }
  | { type: "snapshot"; summary: FarmSummary; nodes: Node[]; workflows: Workflow[]; jobs: Job[] }
  | { type: "jobs"; jobs: Job[] }
  | { type: "nodes"; nodes: Node[] }
  | { type: "workflows"; workflows: Workflow[] }
  | { type: "event"; id: string | null; event: FarmEvent };

/** What an event made out of date, to be asked for again. */
export interface Stale {
  everything: boolean;
  jobs: string[];
  nodes: boolean;
  workflows: boolean;
}

/** The most jobs that are kept; ended ones beyond it are let go of, oldest first. */
export const KEPT_JOBS = 2000;

export const EMPTY: Farm = {
  link: "connecting",
  summary: null,
  nodes: [],
  workflows: [],
  jobs: {},
  cursor: null,
  loaded: false,
};

/** Nothing is out of date. */
export const FRESH: Stale = { everything: false, jobs: [], nodes: false, workflows: false };

/** Applies a message. */
export function reduce(farm: Farm, message: Message): [Farm, Stale] {
  switch (message.type) {
    case "link":
      return [{ ...farm, link: message.link }, FRESH];
    case "snapshot": {
      const { summary, nodes, workflows } = message;
      return [{ ...farm, summary, nodes, workflows, jobs: merge(farm.jobs, message.jobs), loaded: true }, FRESH];
    }
    case "jobs":
      return [{ ...farm, jobs: merge(farm.jobs, message.jobs) }, FRESH];
    case "nodes":
      return [{ ...farm, nodes: message.nodes }, FRESH];
    case "workflows":
      return [{ ...farm, workflows: message.workflows }, FRESH];
    case "event": {
      const cursor = message.id ?? farm.cursor;
      return happened({ ...farm, cursor }, message.event);
    }
  }
}

/** Whether a job has come to its end. */
export function ended(state: JobState): boolean {
  return state !== "queued" && state !== "running";
}

/** Whether a job's files are still to come: it is at work, or has ended and they are about to be told. */
export function unfinished(job: Job): boolean {
  return job.state === "running" || job.state === "succeeded";
}

/** Jobs, newest first. Their ids are in the order of their submission. */
export function newestFirst(jobs: Record<string, Job>): Job[] {
  return Object.values(jobs).sort((a, b) => (a.id < b.id ? 1 : -1));
}

/** Why no node of the farm can run a queued job now; null where it only waits for its turn. */
export function stuck(job: Job): string | null {
  const first = job.waits[0];
  return first && first.node === null ? first.reason : null;
}

/** The name that people know a peer by. */
export function peerName(farm: Farm, peer: string): string {
  if (peer === farm.summary?.coordinator) return "coordinator";
  return farm.nodes.find((node) => node.peer === peer)?.host_name ?? `…${peer.slice(-8)}`;
}

function happened(farm: Farm, event: FarmEvent): [Farm, Stale] {
  switch (event.event) {
    case "snapshot":
      return [farm, { ...FRESH, everything: true }];
    case "deployed":
      return [farm, { ...FRESH, workflows: true }];
    case "node":
      return [farm, { ...FRESH, nodes: true }];
    case "submitted":
      return [farm, { ...FRESH, jobs: [event.job] }];
    case "progress":
      return [atWork(farm, event.job, event.run), FRESH];
    case "started":
      return [atWork(farm, event.job, event.run), { ...FRESH, jobs: [event.job] }];
    case "requeued":
      return [atRest(farm, event.job, "queued"), { ...FRESH, jobs: [event.job] }];
    case "ended":
      return [atRest(farm, event.job, event.state), { ...FRESH, jobs: [event.job] }];
    default:
      // A newer coordinator may tell more than this page knows of.
      return [farm, FRESH];
  }
}

/** A run moved on: its job and its slot show it at once. */
function atWork(farm: Farm, id: string, run: Run): Farm {
  const known = farm.jobs[id];
  // Progress may overtake the answer that brought a job's end.
  if (known && ended(known.state)) return farm;
  const jobs = known ? { ...farm.jobs, [id]: { ...known, state: "running" as const, run } } : farm.jobs;
  const nodes = farm.nodes.map((node) => {
    if (node.peer !== run.node) return node;
    const slots = node.slots.map((slot) => (slot.id === run.slot ? { ...slot, run: { ...run, job: id } } : slot));
    return { ...node, slots };
  });
  return { ...farm, jobs, nodes };
}

/** A run is over: its slot is free, and its job waits again or has ended. */
function atRest(farm: Farm, id: string, state: JobState): Farm {
  const known = farm.jobs[id];
  const jobs = known ? { ...farm.jobs, [id]: { ...known, state, run: null } } : farm.jobs;
  const nodes = farm.nodes.map((node) => {
    if (!node.slots.some((slot) => slot.run?.job === id)) return node;
    return { ...node, slots: node.slots.map((slot) => (slot.run?.job === id ? { ...slot, run: null } : slot)) };
  });
  return { ...farm, jobs, nodes };
}

function merge(known: Record<string, Job>, jobs: Job[]): Record<string, Job> {
  const merged = { ...known };
  for (const job of jobs) merged[job.id] = job;
  const surplus = Object.keys(merged).length - KEPT_JOBS;
  if (surplus > 0) {
    const oldest = newestFirst(merged).filter((job) => ended(job.state)).slice(-surplus);
    for (const job of oldest) delete merged[job.id];
  }
  return merged;
}
