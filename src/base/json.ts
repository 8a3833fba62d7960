/** Plain data: what can cross the border between host and extension, or a process border, without loss. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/**
 * Canonical JSON (RFC 8785): keys sorted by UTF-16 code unit, no white space, numbers as ECMAScript prints them. Equal values give equal text.
 * `undefined` members are left out. Throws a TypeError on what JSON cannot say: NaN, Infinity, functions, a bigint.
 */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map((member) => canonicalJson(member)).join()}]`;
  if (value !== null && typeof value === 'object') {
    // Keys are written one by one: an object made from sorted entries would put keys that look like integers first.
    let members = '';
    for (const key of Object.keys(value).sort()) {
      const member = (value as Readonly<Record<string, unknown>>)[key];
      if (member === undefined) continue;
      if (members !== '') members += ',';
      members += `${JSON.stringify(key)}:${canonicalJson(member)}`;
    }
    return `{${members}}`;
  }
  const text = typeof value === 'number' && !Number.isFinite(value) ? undefined : JSON.stringify(value);
  if (text === undefined) throw new TypeError(`canonical JSON has no ${String(value)}`);
  return text;
}
