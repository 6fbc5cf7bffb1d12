// A workflow's inputs as form controls, and what people entered as the job's JSON.
// Not here: the rules, which the coordinator checks; the form only refuses what it cannot send.

import { parseExact, writeExact } from "./api/exact";
import type { Input } from "./api/types";

/** Which control an input gets. */
export type Control = "text" | "number" | "switch" | "choice" | "file" | "json";

/** What a control holds: text as typed, a switch, or a file that was picked. */
export type Entry = string | boolean | File | null;

/** What was entered, by the input's name. */
export type Entries = Record<string, Entry>;

/** Messages by the input's name. */
export type FieldMessages = Record<string, string>;

/** The control for an input. */
export function controlOf(input: Input): Control {
  switch (input.type) {
    case "choice":
      return "choice";
    case "boolean":
      return "switch";
    case "integer":
    case "number":
      return "number";
    case "image":
    case "file":
      return "file";
    case "array":
    case "object":
    case "null":
      return "json";
    default:
      return "text";
  }
}

/** Entries with every default filled in. */
export function defaults(inputs: Input[]): Entries {
  return Object.fromEntries(inputs.map((input) => [input.name, initial(input)]));
}

/** What keeps these entries from being sent, by field. */
export function unsendable(inputs: Input[], entries: Entries): FieldMessages {
  const messages: FieldMessages = {};
  for (const input of inputs) {
    const entry = entries[input.name] ?? null;
    if (isEmpty(entry)) {
      if (input.required) messages[input.name] = controlOf(input) === "file" ? "Choose a file" : "Needs a value";
    } else if (controlOf(input) === "number" && parseNumber(entry) === null) {
      messages[input.name] = "Not a number";
    } else if (input.type === "integer" && typeof parseNumber(entry) === "number") {
      messages[input.name] = "Must be a whole number";
    } else if (controlOf(input) === "json" && parseJson(entry) === undefined) {
      messages[input.name] = "Not JSON";
    }
  }
  return messages;
}

/** The body of the request, once the files are stored; `assets` has their hashes by the input's name. */
export function jobBody(inputs: Input[], entries: Entries, assets: Record<string, string>): string {
  const input: Record<string, unknown> = {};
  for (const declared of inputs) {
    const value = valueOf(declared, entries[declared.name] ?? null, assets[declared.name]);
    if (value !== undefined) input[declared.name] = value;
  }
  return writeExact({ input });
}

/** The value that is sent for an entry; `undefined` leaves it to the default. */
export function valueOf(input: Input, entry: Entry, asset?: string): unknown {
  switch (controlOf(input)) {
    case "file":
      return asset === undefined ? undefined : { $asset: asset };
    case "switch":
      return entry === true;
    case "number":
      return isEmpty(entry) ? undefined : (parseNumber(entry) ?? entry);
    case "json":
      return isEmpty(entry) ? undefined : parseJson(entry);
    case "choice":
      return input.values?.find((value) => String(value) === entry);
    case "text":
      // An empty text says something only where it takes the place of a default.
      return entry === "" && (input.default ?? "") === "" && input.required ? undefined : entry;
  }
}

/** A seed that nobody chose, within the input's limits. */
export function randomInteger(input: Input): string {
  const low = Math.max(Number(input.minimum ?? 0), 0);
  const high = Math.min(Number(input.maximum ?? 2 ** 32 - 1), 2 ** 32 - 1);
  return String(low + Math.floor(Math.random() * (high - low + 1)));
}

/** The limits of a number in words; limits that only say "any 64-bit integer" are left out. */
export function limits({ minimum, maximum }: Input): string {
  const low = minimum != null && Math.abs(Number(minimum)) < 2 ** 53 ? `${minimum}` : null;
  const high = maximum != null && Math.abs(Number(maximum)) < 2 ** 53 ? `${maximum}` : null;
  if (low !== null && high !== null) return `${low} to ${high}`;
  if (low !== null) return `${low} or more`;
  return high === null ? "" : `${high} or less`;
}

function initial(input: Input): Entry {
  const control = controlOf(input);
  if (control === "file") return null;
  if (control === "switch") return input.default === true;
  if (control === "json") return input.default === undefined ? "" : writeExact(input.default);
  if (input.default != null) return String(input.default);
  return control === "choice" ? String(input.values?.[0] ?? "") : "";
}

function isEmpty(entry: Entry): boolean {
  return entry === null || (typeof entry === "string" && entry.trim() === "");
}

function parseJson(entry: Entry): unknown {
  try {
    return parseExact(String(entry));
  } catch {
    return undefined;
  }
}

/** Whole numbers as `bigint`, so that no digit is lost; others as `number`. */
function parseNumber(entry: Entry): bigint | number | null {
  const text = String(entry).trim();
  if (/^[+-]?\d+$/.test(text)) return BigInt(text.replace(/^\+/, ""));
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : null;
}
