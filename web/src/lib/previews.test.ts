import { expect, test } from "vitest";
import { Client } from "./api/client";
import { followPreviews, pictureOf } from "./previews";

test("a picture has the bytes and the type that its event carries", async () => {
  const picture = pictureOf({ data: btoa("\xff\xd8\xff"), media_type: "image/jpeg" });
  expect(picture.type).toBe("image/jpeg");
  expect([...new Uint8Array(await picture.arrayBuffer())]).toEqual([0xff, 0xd8, 0xff]);
});

test("pictures are told until the job ends", async () => {
  const event = (name: string, body: object) => `event: ${name}\ndata: ${JSON.stringify({ event: name, ...body })}\n\n`;
  const picture = (text: string) => event("preview", { data: btoa(text), media_type: "image/png" });
  const answer = new Response(`: alive\n\n${picture("one")}${picture("two")}${event("ended", { state: "succeeded" })}`);
  const client = new Client("key");
  client.send = async () => answer;
  const seen: string[] = [];
  await followPreviews(client, "7", new AbortController().signal, async (blob) => seen.push(blob.type));
  expect(seen).toEqual(["image/png", "image/png"]);
});
