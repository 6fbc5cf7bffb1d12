// Requests to `/v1` with the key, and what goes wrong with them as one error type.
// Not here: the live state (`farm.svelte.ts`) and the event stream's format (`stream.ts`).

import { parseExact } from "./exact";
import type { Candidates, FieldError, Problem } from "./types";

/** An answer that is not a success, or none at all (`status` 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly fields: FieldError[] = [],
    /** What a graph to deploy could expose, where it exposes nothing. */
    readonly candidates: Candidates | null = null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** Sends requests with one key. */
export class Client {
  /** `refused` is called whenever the coordinator does not accept the key. */
  constructor(
    private readonly key: string,
    private readonly refused: () => void = () => {},
  ) {}

  /** Gets JSON. Integers beyond 2^53 arrive as `bigint`. */
  async get<T>(path: string): Promise<T> {
    return parseExact(await (await this.send(path)).text()) as T;
  }

  /** Posts JSON text, or nothing, and reads JSON. */
  async post<T>(path: string, json?: string): Promise<T> {
    const headers: Record<string, string> = json === undefined ? {} : { "content-type": "application/json" };
    const answer = await this.send(path, { method: "POST", body: json, headers });
    const text = await answer.text();
    return (text === "" ? undefined : parseExact(text)) as T;
  }

  /** Posts a file as it is, and reads JSON. */
  async postFile<T>(path: string, file: Blob, mediaType: string): Promise<T> {
    const answer = await this.send(path, { method: "POST", body: file, headers: { "content-type": mediaType } });
    return parseExact(await answer.text()) as T;
  }

  /** Stores a file as an asset; the answer's hash names it in a job. */
  async upload(file: File): Promise<{ hash: string }> {
    return this.postFile("/v1/assets", file, file.type || "application/octet-stream");
  }

  /** Gets bytes, such as an output. */
  async blob(path: string, signal?: AbortSignal): Promise<Blob> {
    return (await this.send(path, { signal })).blob();
  }

  /** Sends a request; anything but a success is an `ApiError`. */
  async send(path: string, request: RequestInit = {}): Promise<Response> {
    const headers = new Headers(request.headers);
    headers.set("authorization", `Bearer ${this.key}`);
    let answer: Response;
    try {
      answer = await fetch(path, { ...request, headers, cache: "no-store" });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new ApiError(0, "The coordinator does not answer. Is it running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) this.refused();
    throw await problem(answer);
  }
}

/** What to tell people about anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function problem(answer: Response): Promise<ApiError> {
  const fallback = `The coordinator answered ${answer.status} ${answer.statusText}`.trim();
  try {
    const body = (await answer.json()) as Partial<Problem>;
    return new ApiError(answer.status, sentence(body.detail || body.title || fallback), body.errors ?? [], body.candidates ?? null);
  } catch {
    return new ApiError(answer.status, fallback);
  }
}

/** The API's messages begin in lower case, as parts of a longer line; here they stand alone. */
function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
