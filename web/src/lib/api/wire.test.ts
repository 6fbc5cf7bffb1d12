import { expect, test } from "vitest";
import { writeExact } from "./exact";
import { StreamParser } from "./stream";

test("an event that arrives in pieces is read once it is whole", () => {
  const parser = new StreamParser();
  expect(parser.push("id: 7\nevent: star")).toEqual([]);
  expect(parser.push('ted\ndata: {"job":\ndata: "a"}\n')).toEqual([]);
  expect(parser.push("\n")).toEqual([{ id: "7", name: "started", data: '{"job":\n"a"}' }]);
});

test("comments that keep the connection alive are no events", () => {
  expect(new StreamParser().push(": keep-alive\n\n:\n\n")).toEqual([]);
});

test("an event without data still has its name, and carriage returns are taken off", () => {
  expect(new StreamParser().push("event: snapshot\r\n\r\n")).toEqual([{ id: null, name: "snapshot", data: "" }]);
});

test("an integer beyond 2^53 keeps its digits on the way out", () => {
  expect(writeExact({ input: { seed: 18446744073709551615n, name: 'a "b"', none: undefined } })).toBe(
    '{"input":{"seed":18446744073709551615,"name":"a \\"b\\""}}',
  );
});
