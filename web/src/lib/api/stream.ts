// The format of server-sent events, read from a `fetch` so that a key can be sent (EventSource cannot).
// Not here: what the events mean (`farm.ts`).

/** One event as it came over the wire. */
export interface StreamEvent {
  /** The journal's number; only durable events have one. */
  id: string | null;
  name: string;
  data: string;
}

/** Cuts text, in whatever pieces it arrives, into events. */
export class StreamParser {
  private rest = "";

  push(text: string): StreamEvent[] {
    const blocks = (this.rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.rest = blocks.pop() ?? "";
    return blocks.flatMap((block) => parseBlock(block) ?? []);
  }
}

/** The coordinator says something every 15 s; after this long without a word the connection is dead. */
const LONGEST_SILENCE_MS = 40_000;

/** Reads the events of an answer until it ends. Fails when nothing at all comes for too long. */
export async function* readStream(answer: Response): AsyncGenerator<StreamEvent> {
  if (!answer.body) return;
  const parser = new StreamParser();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let read = await orSilence(reader.read()); !read.done; read = await orSilence(reader.read())) {
      yield* parser.push(read.value);
    }
  } finally {
    // It may have failed already, which is what ended the loop.
    reader.cancel().catch(() => {});
  }
}

async function orSilence<T>(read: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("nothing came for too long")), LONGEST_SILENCE_MS);
  });
  try {
    return await Promise.race([read, silence]);
  } finally {
    clearTimeout(timer);
  }
}

function parseBlock(block: string): StreamEvent | null {
  const event: StreamEvent = { id: null, name: "message", data: "" };
  const data: string[] = [];
  for (const line of block.split("\n")) {
    if (line === "" || line.startsWith(":")) continue;
    const [field, value] = cut(line);
    if (field === "id") event.id = value;
    else if (field === "event") event.name = value;
    else if (field === "data") data.push(value);
  }
  event.data = data.join("\n");
  return data.length === 0 && event.name === "message" ? null : event;
}

function cut(line: string): [string, string] {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  const value = line.slice(colon + 1);
  return [line.slice(0, colon), value.startsWith(" ") ? value.slice(1) : value];
}
