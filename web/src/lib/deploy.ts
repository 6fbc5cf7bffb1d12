// What people choose when they deploy a graph that exposes nothing by itself: which inputs, which outputs.
// Not here: the request itself (`views/workflow/Deploy.svelte`).

import type { Candidates } from "./api/types";

/** What could be exposed: which of it was chosen, and an input under which name. */
export interface Choices {
  inputs: (Candidates["inputs"][number] & { name: string; chosen: boolean })[];
  outputs: (Candidates["outputs"][number] & { chosen: boolean })[];
}

/** A workflow's name made from a file's: `Pixel Art.cpack.zip` becomes `pixel-art`. */
export function nameOf(fileName: string): string {
  const stem = fileName.toLowerCase().replace(/(\.cpack)?\.(zip|json)$/, "");
  return stem.replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 63);
}

/** Candidates as choices: all outputs, no inputs, and each input under a name that no other has. */
export function choicesOf(candidates: Candidates): Choices {
  const fields = candidates.inputs.map(({ input }) => input.split(".").slice(1).join("."));
  const inputs = candidates.inputs.map((candidate, index) => {
    const field = fields[index] ?? "";
    const unique = fields.filter((other) => other === field).length === 1;
    const name = unique ? field : `${field}_${candidate.input.split(".")[0]}`;
    return { ...candidate, name: name.replace(/\W/g, "_"), chosen: false };
  });
  return { inputs, outputs: candidates.outputs.map((candidate) => ({ ...candidate, chosen: true })) };
}

/** The query of a deploy. */
export function deployQuery(name: string, acceptAttached: boolean, choices: Choices | null): string {
  const query = new URLSearchParams({ name });
  if (acceptAttached) query.set("accept_attached", "true");
  for (const { name, input, chosen } of choices?.inputs ?? []) if (chosen) query.append("input", `${name}=${input}`);
  for (const { node, chosen } of choices?.outputs ?? []) if (chosen) query.append("output", node);
  return query.toString();
}
