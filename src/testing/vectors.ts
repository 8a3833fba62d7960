import { readFileSync } from 'node:fs';
import type { Json } from '../base/json.ts';

/** The vectors of one format: `test/vectors/<format>/<file>.json`. */
export function readVectors<T>(format: string, file: string): T {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/${format}/${file}.json`, import.meta.url), 'utf8')) as T;
}

/** JSON merge patch (RFC 7396): how invalid vectors say in what they differ from a valid one. */
export function patched(target: Json | undefined, patch: Json): Json {
  if (patch === null || typeof patch !== 'object' || Array.isArray(patch)) return patch;
  const out: Record<string, Json> = { ...(target as Record<string, Json>) };
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete out[name];
    else out[name] = patched(out[name], value);
  }
  return out;
}
