// The farm as the page sees it, kept up to date: by the event stream, and by asking again where that fails.
// Not here: what a message does to the state (`farm.ts`).

import { type Client, messageOf } from "./api/client";
import { readStream } from "./api/stream";
import type { FarmEvent, FarmSummary, Job, Jobs, Nodes, Workflows } from "./api/types";
import { EMPTY, type Farm, FRESH, type Message, reduce, type Stale } from "./farm";

const LISTED_JOBS = 100;
/** Events come in bursts; what they made out of date is asked for once per burst. */
const SETTLE_MS = 150;
/** Why a job waits and when a node was seen change without an event. */
const REFRESH_MS = 10_000;
const REFRESH_WITHOUT_STREAM_MS = 2_500;
const LONGEST_BACKOFF_MS = 15_000;

/** The live state. Components read `state`; nobody else writes it. */
export class LiveFarm {
  state = $state.raw<Farm>(EMPTY);
  /** Why the last snapshot could not be had, in words. */
  trouble = $state.raw<string | null>(null);

  private readonly stop = new AbortController();
  private stale: Stale = FRESH;
  private settling: ReturnType<typeof setTimeout> | undefined;
  private refreshing: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly client: Client) {}

  start(): void {
    void this.follow();
    void this.refresh();
  }

  close(): void {
    this.stop.abort();
    clearTimeout(this.settling);
    clearTimeout(this.refreshing);
  }

  /** Takes in what a component got from the API itself. */
  take(message: Message): void {
    const [next, stale] = reduce(this.state, message);
    this.state = next;
    this.settle(stale);
  }

  /** Asks again for what a component has changed. */
  changed(part: "nodes" | "workflows"): void {
    this.settle({ ...FRESH, [part]: true });
  }

  /** Gets one job again. */
  async job(id: string): Promise<Job> {
    const job = await this.client.get<Job>(`/v1/jobs/${id}`);
    this.take({ type: "jobs", jobs: [job] });
    return job;
  }

  /** Asks for a page of jobs, newest first; says before which job the next page begins, if there is one. */
  async page(query: { before?: string; state?: string }): Promise<string | null> {
    const parameters = new URLSearchParams({ limit: String(LISTED_JOBS), ...query });
    const { jobs, next } = await this.client.get<Jobs>(`/v1/jobs?${parameters}`);
    this.take({ type: "jobs", jobs });
    return next;
  }

  private async follow(): Promise<void> {
    let backoff = 500;
    while (!this.stop.signal.aborted) {
      try {
        const headers: Record<string, string> = { accept: "text/event-stream" };
        if (this.state.cursor !== null) headers["last-event-id"] = this.state.cursor;
        const answer = await this.client.send("/v1/events", { headers, signal: this.stop.signal });
        backoff = 500;
        this.take({ type: "link", link: "live" });
        this.settle({ ...FRESH, everything: true });
        for await (const { id, data } of readStream(answer)) {
          if (data !== "") this.take({ type: "event", id, event: JSON.parse(data) as FarmEvent });
        }
      } catch (error) {
        if (this.stop.signal.aborted) return;
        console.warn("the event stream broke off:", messageOf(error));
      }
      if (this.state.link === "live") {
        this.take({ type: "link", link: "polling" });
        void this.refresh();
      }
      await new Promise((resume) => setTimeout(resume, backoff));
      backoff = Math.min(backoff * 2, LONGEST_BACKOFF_MS);
    }
  }

  private async refresh(): Promise<void> {
    clearTimeout(this.refreshing);
    if (document.visibilityState === "visible" || !this.state.loaded) await this.snapshot();
    if (this.stop.signal.aborted) return;
    clearTimeout(this.refreshing);
    const pause = this.state.link === "live" ? REFRESH_MS : REFRESH_WITHOUT_STREAM_MS;
    this.refreshing = setTimeout(() => void this.refresh(), pause);
  }

  private async snapshot(): Promise<void> {
    try {
      const [summary, nodes, workflows, jobs] = await Promise.all([
        this.client.get<FarmSummary>("/v1/farm"),
        this.client.get<Nodes>("/v1/nodes"),
        this.client.get<Workflows>("/v1/workflows"),
        this.client.get<Jobs>(`/v1/jobs?limit=${LISTED_JOBS}`),
      ]);
      this.take({ type: "snapshot", summary, ...nodes, ...workflows, jobs: jobs.jobs });
      this.trouble = null;
      if (this.state.link !== "live") this.take({ type: "link", link: "polling" });
    } catch (error) {
      this.trouble = messageOf(error);
      if (this.state.link !== "live") this.take({ type: "link", link: "lost" });
    }
  }

  /** Remembers what is out of date, and asks for it once the burst is over. */
  private settle(stale: Stale): void {
    const { everything, jobs, nodes, workflows } = stale;
    if (!everything && jobs.length === 0 && !nodes && !workflows) return;
    this.stale = {
      everything: this.stale.everything || everything,
      jobs: [...new Set([...this.stale.jobs, ...jobs])],
      nodes: this.stale.nodes || nodes,
      workflows: this.stale.workflows || workflows,
    };
    this.settling ??= setTimeout(() => void this.ask(), SETTLE_MS);
  }

  private async ask(): Promise<void> {
    const { everything, jobs, nodes, workflows } = this.stale;
    this.stale = FRESH;
    this.settling = undefined;
    if (everything || jobs.length > 10) return this.snapshot();
    const asked: Promise<unknown>[] = jobs.map((id) => this.job(id));
    if (nodes) {
      asked.push(this.client.get<Nodes>("/v1/nodes").then((list) => this.take({ type: "nodes", ...list })));
    }
    if (workflows) {
      const answer = this.client.get<Workflows>("/v1/workflows");
      asked.push(answer.then((list) => this.take({ type: "workflows", ...list })));
    }
    for (const { reason } of (await Promise.allSettled(asked)).filter((answer) => answer.status === "rejected")) {
      console.warn("could not refresh:", messageOf(reason));
    }
  }
}
