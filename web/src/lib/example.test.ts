import { expect, test } from "vitest";
import type { Input } from "./api/types";
import { curlExample, quote } from "./example";

const PROMPT: Input = { name: "prompt", title: "Prompt", type: "string", required: true };
const STEPS: Input = { name: "steps", title: "Steps", type: "integer", required: false, default: 20 };
const PICTURE: Input = { name: "picture", title: "Picture", type: "image", required: true };

test("values go as JSON, quoted for the shell", () => {
  expect(curlExample("http://farm", "cat", [PROMPT, STEPS], { prompt: "it's red", steps: "8" })).toBe(
    [
      "curl 'http://farm/v1/workflows/cat/jobs?wait=60s'",
      '-H "Authorization: Bearer $COMFY_FARM_KEY"',
      '-H "Content-Type: application/json"',
      `-d '{"input":{"prompt":"it'\\''s red","steps":8}}'`,
    ].join(" \\\n  "),
  );
});

test("with a file, values go as parts of a form", () => {
  const command = curlExample("http://farm", "cat@2", [PROMPT, PICTURE], { prompt: "@home", picture: null });
  expect(command.split(" \\\n  ").slice(2)).toEqual(["--form-string prompt=@home", "-F picture=@picture.png"]);
});

test("a word is quoted only where a shell would read it otherwise", () => {
  expect([quote("a-b=1"), quote("a b"), quote("$HOME"), quote("")]).toEqual(["a-b=1", "'a b'", "'$HOME'", "''"]);
});
