// A node's workspaces in words and in the order in which people look for them.

import type { NodeWorkspace } from "./api/types";
import { size } from "./format";

/** The states, those first at which something happens or a person must act. */
const ORDER = ["preparing", "failed", "refused", "waiting", "loaded", "proven"];

const STEPS: Record<string, string> = {
  lockfile: "reads the lockfile",
  code: "fetches the code",
  python: "installs Python packages",
  models: "fetches the models",
  proof: "starts ComfyUI in it",
};

/** Those of a node, as they are shown. */
export function inOrder(workspaces: NodeWorkspace[]): NodeWorkspace[] {
  // A state that a newer coordinator knows stands before all.
  const place = ({ state }: NodeWorkspace): number => ORDER.indexOf(state);
  return [...workspaces].sort((a, b) => place(a) - place(b) || title(a).localeCompare(title(b)));
}

/** Whether nothing happens at it and nobody must act. */
export function isQuiet({ state }: NodeWorkspace): boolean {
  return ["waiting", "loaded", "proven"].includes(state);
}

/** What people know it by: its workflows, else the beginning of its lockfile's hash. */
export function title({ workflows, lockfile }: NodeWorkspace): string {
  return workflows.length > 0 ? workflows.join(", ") : lockfile.slice(0, 10);
}

/** What is being done for one that is prepared. */
export function step({ step }: NodeWorkspace): string {
  return step ? (STEPS[step] ?? step) : "";
}

/** How many bytes of the step are done; nothing, where it moves none. */
export function moved({ done, total }: NodeWorkspace): string {
  if (total > 0) return `${size(done)} of ${size(total)}`;
  return done > 0 ? size(done) : "";
}

/** Which part of the step is done; null, where that is not known. */
export function part({ done, total }: NodeWorkspace): number | null {
  return total > 0 ? Math.min(done / total, 1) : null;
}

/** Why it is not there: the first line, and all of it where there is more. */
export function reason(workspace: NodeWorkspace): { brief: string; whole: string | null } | null {
  if (!workspace.reason) return null;
  const at = workspace.step ? `${workspace.step}: ` : "";
  const [first = "", ...more] = workspace.reason.trim().split("\n");
  return { brief: at + first, whole: more.length > 0 ? workspace.reason.trim() : null };
}
