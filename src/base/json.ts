/** Plain data: what can cross the border between host and extension, or a process border, without loss. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/**
 * Canonical JSON (RFC 8785 for the values we use): keys sorted by UTF-16 code unit, no white space, `undefined` members left out.
 * Numbers must be safe integers or finite doubles as ECMAScript prints them. Equal values give equal bytes.
 */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, member: unknown) => {
    if (typeof member === 'number' && !Number.isFinite(member))
      throw new TypeError('canonical JSON has no NaN or Infinity');
    if (member === null || typeof member !== 'object' || Array.isArray(member)) return member;
    return Object.fromEntries(Object.entries(member).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
  });
}
