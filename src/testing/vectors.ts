import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { base64, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';

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

export interface Invalid {
  /** Merge patches of what a valid record says. */
  readonly changes: readonly { readonly why: string; readonly change: Json }[];
  /** Merge patches of a valid document, or another payload in it. */
  readonly documents: readonly { readonly why: string; readonly document?: Json; readonly payload?: string }[];
}

/** A decoder of signed records takes a valid one, and refuses the invalid vectors, other forms of the valid one, and what is too long. */
export function assertRefuses(
  decode: (bytes: Uint8Array) => unknown,
  valid: { readonly document: string; readonly says: unknown; readonly bytesMax: number },
  { changes, documents }: Invalid,
): void {
  const base = JSON.parse(valid.document) as Json;
  const says = valid.says as Json;
  /** The valid document with another payload, which its signatures are not about. */
  const carrying = (payload: string) =>
    utf8(canonicalJson(patched(base, { envelope: { payload: base64(utf8(payload)) } })));
  const refused = (bytes: Uint8Array, why: string) =>
    assert.throws(
      () => decode(bytes),
      (error) => isCoded(error, 'record-invalid'),
      why,
    );
  decode(carrying(canonicalJson(says)));
  for (const { why, change } of changes) refused(carrying(canonicalJson(patched(says, change))), why);
  for (const { why, document = {}, payload } of documents)
    refused(payload === undefined ? utf8(canonicalJson(patched(base, document))) : carrying(payload), why);
  refused(utf8(JSON.stringify(base, null, 1)), 'another form of the same document');
  refused(carrying(JSON.stringify(says, null, 1)), 'another form of what it says');
  refused(utf8(`${valid.document}${' '.repeat(valid.bytesMax)}`), 'too long');
}
