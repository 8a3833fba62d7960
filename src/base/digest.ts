import { hash } from 'node:crypto';

/** SHA-256 of some bytes, as text: the identity of every blob, manifest and record. */
export type Digest = `sha256:${string}`;

const DIGEST = /^sha256:[0-9a-f]{64}$/;

export function isDigest(text: unknown): text is Digest {
  return typeof text === 'string' && DIGEST.test(text);
}

export function sha256(bytes: Uint8Array): Uint8Array {
  // By way of text: node:crypto hands that over faster than a buffer.
  return Uint8Array.fromHex(hash('sha256', bytes, 'hex'));
}

export function digestOf(bytes: Uint8Array): Digest {
  return `sha256:${hash('sha256', bytes, 'hex')}`;
}

/** The 64 hexadecimal digits of a digest. */
export function digestHex(digest: Digest): string {
  return digest.slice(7);
}
