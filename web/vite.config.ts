import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

// `npm run dev` shows the page against a running coordinator, or against `dev/farm.mjs`.
const coordinator = process.env.COMFY_FARM_URL ?? "http://127.0.0.1:8788";

export default defineConfig({
  plugins: [svelte()],
  // The page is served under a policy without `data:`, so nothing may be inlined.
  build: { assetsInlineLimit: 0, modulePreload: { polyfill: false }, target: "es2022" },
  server: { proxy: { "/v1": { target: coordinator }, "/docs": { target: coordinator } } },
  test: { include: ["src/**/*.test.ts"] },
});
