import { HyperMeshError } from '../base/errors.ts';

/** Deep enough for any document of ours; a cycle ends here. */
const DEPTH_MAX = 64;
/** A tree of a million entries has five values each. */
const VALUES_MAX = 8_000_000;

/**
 * Copies a value that crosses the border between host and extension, so that neither side can change what the other holds.
 * Plain data only: null, booleans, numbers, strings, bigints, `Uint8Array`, arrays, plain objects. Bytes are handed over, not copied.
 * Errors: `extension-invalid` for anything else (functions, class instances), `limit-exceeded`.
 */
export function plainCopy(value: unknown, where: string): unknown {
  const budget = { values: VALUES_MAX };
  return copy(value, where, 0, budget);
}

function copy(value: unknown, where: string, depth: number, budget: { values: number }): unknown {
  switch (typeof value) {
    case 'undefined':
    case 'boolean':
    case 'number':
    case 'string':
    case 'bigint':
      return value;
    case 'object':
      break;
    case 'function':
    case 'symbol':
      throw refused(where, `a ${typeof value}`);
  }
  if (value === null) return null;
  budget.values -= 1;
  if (depth > DEPTH_MAX || budget.values < 0) {
    throw new HyperMeshError(
      'limit-exceeded',
      `${where}: deeper than ${DEPTH_MAX} levels or more than ${VALUES_MAX} values.`,
    );
  }
  if (value instanceof Uint8Array) {
    if (Object.getPrototypeOf(value) === Uint8Array.prototype) return value;
    return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  }
  if (Array.isArray(value)) {
    const out: unknown[] = new Array(value.length);
    for (let i = 0; i < value.length; i += 1) out[i] = copy(value[i], where, depth + 1, budget);
    return out;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) {
    throw refused(where, `an instance of ${(value.constructor as { name?: string } | undefined)?.name ?? 'a class'}`);
  }
  const out: Record<string, unknown> = {};
  for (const key of Object.keys(value)) {
    if (key === '__proto__') throw refused(where, 'a key named __proto__');
    out[key] = copy((value as Record<string, unknown>)[key], where, depth + 1, budget);
  }
  return out;
}

function refused(where: string, what: string): HyperMeshError {
  return new HyperMeshError(
    'extension-invalid',
    `${where}: only plain data, bytes, byte streams and call options cross this border, but got ${what}.`,
    { hint: 'Pass values that survive structuredClone() without their class; large content goes by stream or digest.' },
  );
}

export function isAsyncIterable(value: unknown): value is AsyncIterable<unknown> {
  return typeof (value as AsyncIterable<unknown> | null | undefined)?.[Symbol.asyncIterator] === 'function';
}
