import { expect, test } from "vitest";
import type { Input } from "./api/types";
import { controlOf, defaults, jobBody, limits, unsendable } from "./form";

const INPUTS: Input[] = [
  { name: "prompt", title: "prompt", type: "string", required: false, default: "a red fox" },
  { name: "seed", title: "seed", type: "integer", required: true, minimum: -9223372036854775807, maximum: 9223372036854775807 },
  { name: "cfg", title: "cfg", type: "number", required: false, default: 7.5, minimum: 0, maximum: 30 },
  { name: "sampler", title: "sampler", type: "choice", required: false, default: "ddim", values: ["euler", "ddim"] },
  { name: "size", title: "size", type: "choice", required: true, values: [512, 1024] },
  { name: "tiled", title: "tiled", type: "boolean", required: false, default: true },
  { name: "points", title: "points", type: "array", required: false, default: [1] },
  { name: "picture", title: "picture", type: "image", required: true, media: "image/*" },
];

test("every type of input has its control", () => {
  expect(INPUTS.map(controlOf)).toEqual(["text", "number", "number", "choice", "choice", "switch", "json", "file"]);
});

test("defaults are filled in, and what is required and missing is said at its field", () => {
  const entries = defaults(INPUTS);
  expect(entries).toMatchObject({ prompt: "a red fox", cfg: "7.5", sampler: "ddim", size: "512", tiled: true });
  expect(unsendable(INPUTS, entries)).toEqual({ seed: "Needs a value", picture: "Choose a file" });
});

test("a body has the declared types, all digits of a seed, and files by their hash", () => {
  const entries = { ...defaults(INPUTS), seed: "9007199254740993", size: "1024", tiled: false };
  expect(jobBody(INPUTS, entries, { picture: "ab12" })).toBe(
    '{"input":{"prompt":"a red fox","seed":9007199254740993,"cfg":7.5,"sampler":"ddim","size":1024,"tiled":false,' +
      '"points":[1],"picture":{"$asset":"ab12"}}}',
  );
});

test("a default that was cleared is sent as empty text, and an empty number is left to its default", () => {
  const entries = { ...defaults(INPUTS), prompt: "", cfg: " " };
  expect(JSON.parse(jobBody(INPUTS, entries, {})).input).toEqual({ prompt: "", sampler: "ddim", size: 512, tiled: true, points: [1] });
});

test("what is no number, or not whole where it must be, is refused before it is sent", () => {
  const entries = { ...defaults(INPUTS), seed: "1.5", cfg: "high", points: "[1", picture: new File([], "cat.png") };
  expect(unsendable(INPUTS, entries)).toEqual({ seed: "Must be a whole number", cfg: "Not a number", points: "Not JSON" });
});

test("limits are said where they limit anything", () => {
  expect(INPUTS.map(limits)).toEqual(["", "", "0 to 30", "", "", "", "", ""]);
  expect(limits({ ...INPUTS[2]!, maximum: null })).toBe("0 or more");
});
