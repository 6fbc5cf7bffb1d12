// How components get at the live farm without it being handed through each of them.

import { getContext, setContext } from "svelte";
import type { LiveFarm } from "./farm.svelte";

const FARM = Symbol("farm");

/** Gives the live farm to all components below. */
export function provideFarm(farm: LiveFarm): void {
  setContext(FARM, farm);
}

/** The live farm. */
export function useFarm(): LiveFarm {
  return getContext<LiveFarm>(FARM);
}
