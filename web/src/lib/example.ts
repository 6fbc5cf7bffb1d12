// The call that a form stands for, as a curl command to copy.

import { writeExact } from "./api/exact";
import type { Input } from "./api/types";
import { controlOf, type Entries, valueOf } from "./form";

/** A curl command that submits these entries and waits for the job. */
export function curlExample(origin: string, name: string, inputs: Input[], entries: Entries): string {
  const url = `${origin}/v1/workflows/${name}/jobs?wait=60s`;
  const head = [`curl ${quote(url)}`, '-H "Authorization: Bearer $COMFY_FARM_KEY"'];
  const hasFile = inputs.some((input) => controlOf(input) === "file");
  const body = hasFile ? form(inputs, entries) : json(inputs, entries);
  return [...head, ...body].join(" \\\n  ");
}

/** Text as one word of a POSIX shell. */
export function quote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function json(inputs: Input[], entries: Entries): string[] {
  const values = inputs.map((input) => [input.name, valueOf(input, entries[input.name] ?? null)]);
  return ['-H "Content-Type: application/json"', `-d ${quote(writeExact({ input: Object.fromEntries(values) }))}`];
}

function form(inputs: Input[], entries: Entries): string[] {
  return inputs.flatMap((input) => {
    const entry = entries[input.name] ?? null;
    if (controlOf(input) === "file") {
      return entry === null && !input.required ? [] : [`-F ${quote(`${input.name}=@${fileName(entry, input.name)}`)}`];
    }
    const value = valueOf(input, entry);
    // `--form-string` takes a value as it is, also one that begins with `@` or `<`.
    const text = typeof value === "string" ? value : writeExact(value);
    return value === undefined ? [] : [`--form-string ${quote(`${input.name}=${text}`)}`];
  });
}

function fileName(entry: Entries[string], name: string): string {
  return entry instanceof File ? entry.name : `${name}.png`;
}
