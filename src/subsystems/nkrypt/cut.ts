import { canonicalJson } from '../../base/json.ts';
import { ENTRY_LIMITS } from '../../wire/entry.ts';

/** What else is in an entry, with room to spare. */
const PART_BYTES_MAX = ENTRY_LIMITS.bytesMax - 64 * 2 ** 10;

/** Parts of at most so many, each of which fits into one entry. */
export function cut<T>(all: readonly T[], countMax: number): readonly (readonly T[])[] {
  const parts: T[][] = [];
  let bytes = 0;
  for (const one of all) {
    const size = canonicalJson(one).length;
    const last = parts.at(-1);
    bytes += size;
    if (last !== undefined && last.length < countMax && bytes <= PART_BYTES_MAX) {
      last.push(one);
      continue;
    }
    parts.push([one]);
    bytes = size;
  }
  return parts;
}
