import { expect, test } from "vitest";
import { choicesOf, deployQuery, nameOf } from "./deploy";

const CANDIDATES = {
  inputs: [
    { input: "6.text", title: "Positive", class: "CLIPTextEncode", value: "a fox" },
    { input: "7.text", title: "Negative", class: "CLIPTextEncode", value: "" },
    { input: "3.seed", title: "KSampler", class: "KSampler", value: 7 },
  ],
  outputs: [{ node: "9", title: "Save Image", class: "SaveImage" }],
};

test("a file's name becomes a workflow's", () => {
  expect(["Pixel Art.cpack.zip", "workflow_api.json", "--.zip"].map(nameOf)).toEqual(["pixel-art", "workflow-api", ""]);
});

test("inputs get names of their own, and every output is taken unless somebody says otherwise", () => {
  const choices = choicesOf(CANDIDATES);
  expect(choices.inputs.map(({ name, chosen }) => [name, chosen])).toEqual([
    ["text_6", false],
    ["text_7", false],
    ["seed", false],
  ]);
  expect(choices.outputs.every(({ chosen }) => chosen)).toBe(true);
});

test("the query names what was chosen and nothing else", () => {
  const choices = choicesOf(CANDIDATES);
  Object.assign(choices.inputs[0]!, { chosen: true, name: "prompt" });
  expect(deployQuery("fox", true, choices)).toBe("name=fox&accept_attached=true&input=prompt%3D6.text&output=9");
  expect(deployQuery("fox", false, null)).toBe("name=fox");
});
