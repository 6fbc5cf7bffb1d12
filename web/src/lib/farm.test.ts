import { expect, test } from "vitest";
import type { FarmEvent, FarmSummary, Job, Node, Run } from "./api/types";
import { EMPTY, type Farm, FRESH, KEPT_JOBS, type Message, newestFirst, peerName, reduce, stuck } from "./farm";

const SUMMARY = { farm: "f", coordinator: "C", epoch: 1, queued: 0, running: 0, nodes: 1, slots: 2 } as FarmSummary;
const RUN: Run = { id: "r1", node: "N", slot: 1, phase: "executing", progress: { fraction: 0.5, detail: "KSampler" } };

function job(id: string, state: Job["state"] = "queued"): Job {
  const none = { waits: [], failures: [], outputs: [], fetched: [] };
  return { id, workflow: "cat@1", state, priority: 50, submitted: "2026-11-24T00:00:00Z", coordinator: "C", ...none } as unknown as Job;
}

function node(): Node {
  const slots = [0, 1].map((id) => ({ id, device: { kind: "cpu", threads: 4 }, run: null }));
  return { peer: "N", host_name: "attic", connected: true, draining: false, slots } as unknown as Node;
}

function farm(...messages: Message[]): Farm {
  const snapshot: Message = { type: "snapshot", summary: SUMMARY, nodes: [node()], workflows: [], jobs: [job("a")] };
  return [snapshot, ...messages].reduce((farm, message) => reduce(farm, message)[0], EMPTY);
}

function event(event: string, data: object, id: string | null = null): Message {
  return { type: "event", id, event: { at: "2026-11-24T00:00:00Z", event, ...data } as FarmEvent };
}

test("a run that moves on is seen at its job and in its slot", () => {
  const after = farm(event("progress", { job: "a", run: RUN }));
  expect(after.jobs["a"]).toMatchObject({ state: "running", run: RUN });
  expect(after.nodes[0]?.slots.map((slot) => slot.run?.job)).toEqual([undefined, "a"]);
});

test("a job that ended frees its slot and is asked for again", () => {
  const [after, stale] = reduce(farm(event("started", { job: "a", run: RUN })), event("ended", { job: "a", state: "failed" }));
  expect(after.jobs["a"]).toMatchObject({ state: "failed", run: null });
  expect(after.nodes[0]?.slots.every((slot) => !slot.run)).toBe(true);
  expect(stale.jobs).toEqual(["a"]);
});

test("progress that comes after the end does not bring a job back", () => {
  const before = farm(event("ended", { job: "a", state: "succeeded" }));
  expect(reduce(before, event("progress", { job: "a", run: RUN }))[0]).toEqual(before);
});

test("progress of a job that the page has not seen yet is shown in the slot", () => {
  const after = farm(event("progress", { job: "zz", run: RUN }));
  expect(after.jobs["zz"]).toBeUndefined();
  expect(after.nodes[0]?.slots[1]?.run).toMatchObject({ job: "zz", phase: "executing" });
});

test("only durable events move the place from which the stream resumes", () => {
  expect(farm(event("submitted", { job: "b" }, "41"), event("progress", { job: "a", run: RUN })).cursor).toBe("41");
});

test("each event names what it made out of date", () => {
  const stale = (name: string, data = {}) => reduce(farm(), event(name, data))[1];
  expect(stale("snapshot").everything).toBe(true);
  expect(stale("deployed").workflows).toBe(true);
  expect(stale("node").nodes).toBe(true);
  expect(stale("submitted", { job: "b" }).jobs).toEqual(["b"]);
  expect(stale("something-newer")).toEqual(FRESH);
});

test("old ended jobs are let go of, and waiting ones never", () => {
  const ids = Array.from({ length: KEPT_JOBS + 10 }, (_, index) => `b${String(index).padStart(4, "0")}`);
  const after = farm({ type: "jobs", jobs: ids.map((id) => job(id, "succeeded")) });
  const kept = newestFirst(after.jobs);
  expect(kept).toHaveLength(KEPT_JOBS);
  expect(kept[0]?.id).toBe(ids.at(-1));
  expect(kept.at(-1)?.id).toBe("a");
});

test("a job is stuck where its first reason is about the whole farm", () => {
  const waiting = (...waits: Job["waits"]) => stuck({ ...job("a"), waits });
  const busy = { node: "N", reason: "all its slots are busy" };
  expect(waiting({ node: null, reason: "no node can run it" }, busy)).toBe("no node can run it");
  expect(waiting(busy, { node: null, reason: "3 more nodes are not listed" })).toBeNull();
  expect(waiting()).toBeNull();
});

test("a peer is called by its host's name, and by the end of its id when it is unknown", () => {
  expect(["N", "C", "12D3KooWabcdefgh"].map((peer) => peerName(farm(), peer))).toEqual(["attic", "coordinator", "…abcdefgh"]);
});
