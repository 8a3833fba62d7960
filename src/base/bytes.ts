/** Bytes and their text forms. Public types are `Uint8Array`, never `Buffer`. */

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export function utf8(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Throws a TypeError on bytes that are not UTF-8. */
export function fromUtf8(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

export function hex(bytes: Uint8Array): string {
  return bytes.toHex();
}

export function fromHex(text: string): Uint8Array {
  return Uint8Array.fromHex(text);
}

export function base64(bytes: Uint8Array): string {
  return bytes.toBase64();
}

const STRICT = { lastChunkHandling: 'strict' } as const;

/** Strict: padding required, canonical trailing bits, no white space. Throws a SyntaxError. */
export function fromBase64(text: string): Uint8Array {
  const bytes = Uint8Array.fromBase64(text, STRICT);
  if (!isPaddedLength(text, bytes.length)) throw new SyntaxError('There is white space in the base64.');
  return bytes;
}

/** Where texts are decoded to be measured: used again each time, because fresh memory takes longer than the decoding. */
const measured = new Uint8Array(65_536);

/** How many bytes a text stands for, if it is the only base64 text of them: no white space, no loose trailing bits. */
export function base64Length(text: string): number | undefined {
  const into = text.length <= measured.length ? measured : new Uint8Array(text.length);
  try {
    const { written } = into.setFromBase64(text, STRICT);
    return isPaddedLength(text, written) ? written : undefined;
  } catch {
    return undefined;
  }
}

/** White space, which is skipped, is all that can be in a decoded text beside its digits. */
function isPaddedLength(text: string, bytes: number): boolean {
  return text.length === Math.ceil(bytes / 3) * 4;
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

export function u64be(value: bigint): Uint8Array {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, value);
  return out;
}
