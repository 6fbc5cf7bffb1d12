// Runs the example workflow with Node.js and saves its picture.
// usage: COMFY_FARM_KEY=cfk_… node call.mjs PICTURE [OUTPUT]
import { readFile, writeFile } from "node:fs/promises";

const url = process.env.COMFY_FARM_URL ?? "http://127.0.0.1:8288";
const headers = { Authorization: `Bearer ${process.env.COMFY_FARM_KEY}` };
const [picture, output = "pixelated.png"] = process.argv.slice(2);

const form = new FormData();
form.set("picture", new Blob([await readFile(picture)]), "picture.png");
form.set("columns", "64");
const answer = await fetch(`${url}/v1/workflows/pixelate/jobs?wait=60s`, { method: "POST", headers, body: form });
const job = await answer.json();
if (job.state !== "succeeded") throw new Error(JSON.stringify(job));

const made = await fetch(`${url}/v1/jobs/${job.id}/outputs/pixelated`, { headers });
if (!made.ok) throw new Error(`${made.status}`);
await writeFile(output, Buffer.from(await made.arrayBuffer()));
