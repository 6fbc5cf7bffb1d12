import { expect, test } from "vitest";

import type { NodeWorkspace } from "./api/types";
import { inOrder, isQuiet, moved, part, reason, step, title } from "./workspace";

function workspace(state: string, rest: Partial<NodeWorkspace> = {}): NodeWorkspace {
  const none = { step: null, done: 0, total: 0, reason: null, equivalent: false, notes: [] };
  return { lockfile: "ab".repeat(32), workflows: [`${state}@1`], state, ...none, ...rest };
}

test("what happens or needs a person stands first", () => {
  const states = ["proven", "waiting", "refused", "tomorrow's", "loaded", "failed", "preparing"];
  const sorted = inOrder(states.map((state) => workspace(state)));
  expect(sorted.filter(isQuiet).length).toBe(3);
  expect(sorted.map(({ state }) => state)).toEqual(["tomorrow's", "preparing", "failed", "refused", "waiting", "loaded", "proven"]);
});

test("workspace is known by its workflows, else by its lockfile", () => {
  expect(title(workspace("proven", { workflows: ["fox@1", "fox@2"] }))).toBe("fox@1, fox@2");
  expect(title(workspace("proven", { workflows: [] }))).toBe("ababababab");
});

test("preparation is told by its step and bytes", () => {
  const models = workspace("preparing", { step: "models", done: 3 * 2 ** 30, total: 6 * 2 ** 30 });
  expect([step(models), moved(models), part(models)]).toEqual(["fetches the models", "3.0 GiB of 6.0 GiB", 0.5]);
  const code = workspace("preparing", { step: "code", done: 2 ** 20 });
  expect([moved(code), part(code)]).toEqual(["1.0 MiB", null]);
  expect(moved(workspace("preparing", { step: "proof" }))).toBe("");
});

test("reason names its step, and its first line stands for a long one", () => {
  expect(reason(workspace("proven"))).toBeNull();
  expect(reason(workspace("refused", { reason: "not trusted" }))).toEqual({ brief: "not trusted", whole: null });
  const long = workspace("failed", { step: "python", reason: "uv ended with 1; its last lines:\nno such wheel\n" });
  expect(reason(long)).toEqual({
    brief: "python: uv ended with 1; its last lines:",
    whole: "uv ended with 1; its last lines:\nno such wheel",
  });
});
