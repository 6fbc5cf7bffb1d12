// The pictures in the making of one job, as they come. Not here: the job itself (`farm.svelte.ts`).

import { type Client, messageOf } from "./api/client";
import { readStream } from "./api/stream";
import type { FarmEvent } from "./api/types";

/** How long to wait before a stream that broke off is asked for again. */
const AGAIN_MS = 2_000;

/** Tells each picture of a job until the job ends, or `signal`. Whoever asks for them makes the node send them. */
export async function followPreviews(
  client: Client,
  job: string,
  signal: AbortSignal,
  show: (picture: Blob) => void,
): Promise<void> {
  while (!signal.aborted) {
    try {
      const headers = { accept: "text/event-stream" };
      const answer = await client.send(`/v1/jobs/${job}/events?previews=true`, { headers, signal });
      for await (const { data } of readStream(answer)) {
        const event = data === "" ? null : (JSON.parse(data) as FarmEvent);
        if (event?.event === "ended") return;
        if (event?.event === "preview") show(pictureOf(event));
      }
    } catch (error) {
      if (signal.aborted) return;
      console.warn("the pictures in the making broke off:", messageOf(error));
    }
    await new Promise((resume) => setTimeout(resume, AGAIN_MS));
  }
}

/** The picture that an event carries. */
export function pictureOf({ data, media_type }: { data: string; media_type: string }): Blob {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: media_type });
}
