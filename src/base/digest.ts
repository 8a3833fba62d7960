import { hash } from 'node:crypto';

/** SHA-256 of some bytes, as text: the identity of every blob, manifest and record. */
export type Digest = `sha256:${string}`;

const DIGEST = /^sha256:[0-9a-f]{64}$/;

export function isDigest(text: unknown): text is Digest {
  return typeof text === 'string' && DIGEST.test(text);
}

/** Of a text: of its UTF-8. */
export function sha256(content: Uint8Array | string): Uint8Array {
  // By way of text: node:crypto hands that over faster than a buffer.
  return Uint8Array.fromHex(hash('sha256', content, 'hex'));
}

/** Of a text: of its UTF-8. */
export function digestOf(content: Uint8Array | string): Digest {
  return `sha256:${hash('sha256', content, 'hex')}`;
}

/** The 64 hexadecimal digits of a digest. */
export function digestHex(digest: Digest): string {
  return digest.slice(7);
}
