// Which view the address names. Addresses are in the hash, so that the coordinator serves one page.

/** A view of the page. */
export type Route =
  | { view: "mesh" | "jobs" | "workflows" | "unknown" }
  | { view: "job"; id: string }
  | { view: "workflow"; name: string };

/** Reads the part of an address after `#`. */
export function parseRoute(hash: string): Route {
  const [view = "", ...rest] = hash.replace(/^#?\/?/, "").split("/").map(decode);
  const argument = rest.join("/");
  switch (view) {
    case "":
      return { view: "mesh" };
    case "jobs":
      return argument === "" ? { view: "jobs" } : { view: "job", id: argument };
    case "workflows":
      return argument === "" ? { view: "workflows" } : { view: "workflow", name: argument };
    default:
      return { view: "unknown" };
  }
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

class Location {
  route = $state.raw<Route>(parseRoute(window.location.hash));

  constructor() {
    window.addEventListener("hashchange", () => {
      this.route = parseRoute(window.location.hash);
    });
  }
}

export const location = new Location();
