import { expect, test } from "vitest";
import { ago, between, percent, size, span } from "./format";

test("sizes are short", () => {
  expect([0, 1023, 1536, 150 * 1024, 7 * 1024 ** 3].map(size)).toEqual(["0 B", "1023 B", "1.5 KiB", "150 KiB", "7.0 GiB"]);
});

test("spans have the precision that matters", () => {
  const spans = [-5, 400, 12_900, 185_000, 7_800_000, 3 * 86_400_000].map(span);
  expect(spans).toEqual(["0.0 s", "0.4 s", "12 s", "3 min 05 s", "2 h 10 min", "3 days"]);
});

test("a span without an end runs up to now, and one without a start has not begun", () => {
  const now = Date.parse("2026-11-24T10:00:30Z");
  expect(between("2026-11-24T10:00:00Z", null, now)).toBe("30 s");
  expect(between("2026-11-24T10:00:00Z", "2026-11-24T10:00:02Z", now)).toBe("2.0 s");
  expect(between(null, null, now)).toBe("–");
});

test("how long ago something was is said in one unit", () => {
  const now = Date.parse("2026-11-24T10:00:00Z");
  const times = ["2026-11-24T09:59:59Z", "2026-11-24T09:59:30Z", "2026-11-24T09:01:00Z", "2026-11-24T01:10:00Z", "2026-11-22T09:00:00Z"];
  expect(times.map((time) => ago(time, now))).toEqual(["just now", "30 s ago", "59 min ago", "8 h ago", "2 days ago"]);
});

test("a part is never shown as whole before it is", () => {
  expect([-1, 0.999, 1, 2].map(percent)).toEqual(["0%", "99%", "100%", "100%"]);
});
