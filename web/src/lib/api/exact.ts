// JSON without loss: a seed is a 64-bit integer, and a JavaScript number is not.

interface Source {
  source?: string;
}

type Reviver = (key: string, value: unknown, context?: Source) => unknown;

/** Parses JSON; an integer that a number cannot hold becomes a `bigint` where the browser shows its digits. */
export function parseExact(text: string): unknown {
  const reviver: Reviver = (_, value, context) => {
    const digits = context?.source;
    if (typeof value !== "number" || Number.isSafeInteger(value)) return value;
    return digits !== undefined && /^-?\d+$/.test(digits) ? BigInt(digits) : value;
  };
  return JSON.parse(text, reviver as (key: string, value: unknown) => unknown);
}

/** Writes JSON; a `bigint` is written with all its digits. */
export function writeExact(value: unknown): string {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) return `[${value.map(writeExact).join(",")}]`;
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${writeExact(item)}`).join(",")}}`;
  }
  return JSON.stringify(value) ?? "null";
}
