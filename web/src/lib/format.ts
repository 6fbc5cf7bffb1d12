// Quantities in words for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A size, such as `1.5 GiB`. */
export function size(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** A speed, such as `1.5 MiB/s`. */
export function rate(bytesPerSecond: number): string {
  return `${size(bytesPerSecond)}/s`;
}

/** A time span, such as `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`. */
export function span(milliseconds: number): string {
  const seconds = Math.max(milliseconds, 0) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${pad(Math.floor(seconds % 60))} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${pad(minutes % 60)} min` : `${Math.floor(hours / 24)} days`;
}

/** The span between two times of the API, or up to `now` where the second is missing. */
export function between(from: string | null | undefined, to: string | null | undefined, now: number): string {
  return from ? span((to ? Date.parse(to) : now) - Date.parse(from)) : "–";
}

/** How long ago something was. */
export function ago(time: string, now: number): string {
  const past = now - Date.parse(time);
  const units = [1, 60, 3600, 86_400].map((unit) => Math.floor(past / 1000 / unit));
  const [seconds = 0, minutes = 0, hours = 0, days = 0] = units;
  if (seconds < 10) return "just now";
  if (minutes === 0) return `${seconds} s ago`;
  if (hours === 0) return `${minutes} min ago`;
  return days === 0 ? `${hours} h ago` : `${count(days, "day")} ago`;
}

/** A time of the API in the reader's own clock. */
export function clockTime(time: string): string {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** A part of a whole in per cent. */
export function percent(fraction: number): string {
  return `${Math.floor(Math.min(Math.max(fraction, 0), 1) * 100)}%`;
}

/** The part of an id that tells it from others; the ends of UUIDv7 are random. */
export function shortId(id: string): string {
  return id.length > 12 ? id.slice(-8) : id;
}

/** A count with its noun. */
export function count(number: number, singular: string, plural?: string): string {
  return `${number} ${noun(number, singular, plural)}`;
}

/** A noun as it follows a count. */
export function noun(number: number, singular: string, plural = `${singular}s`): string {
  return number === 1 ? singular : plural;
}

function pad(number: number): string {
  return String(number).padStart(2, "0");
}
