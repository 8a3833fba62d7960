import { createPrivateKey, createPublicKey, type KeyObject, randomBytes, sign, verify } from 'node:crypto';
import { concat, fromHex } from '../../base/bytes.ts';

/** RFC 8410 wrappers around the 32 raw bytes. */
const PKCS8 = fromHex('302e020100300506032b657004220420');
const SPKI = fromHex('302a300506032b6570032100');

export const ED25519 = { publicKey: 32, seed: 32, signature: 64 } as const;

export interface Ed25519KeyPair {
  readonly publicKey: Uint8Array;
  /** The 32 secret bytes of RFC 8032. */
  readonly seed: Uint8Array;
}

export function generateEd25519(): Ed25519KeyPair {
  const seed = new Uint8Array(randomBytes(ED25519.seed));
  const spki = createPublicKey(privateKey(seed)).export({ format: 'der', type: 'spki' });
  return { publicKey: new Uint8Array(spki.subarray(SPKI.length)), seed };
}

export function signEd25519(message: Uint8Array, seed: Uint8Array): Uint8Array {
  return signAllEd25519([message], seed)[0]!;
}

export function signAllEd25519(messages: readonly Uint8Array[], seed: Uint8Array): readonly Uint8Array[] {
  const key = privateKey(seed);
  return messages.map((message) => new Uint8Array(sign(null, message, key)));
}

/** False for anything but a valid signature (with S below the group order); never throws on hostile bytes. */
export function verifyEd25519(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean {
  if (signature.length !== ED25519.signature || publicKey.length !== ED25519.publicKey) return false;
  try {
    return verify(null, message, keyOf(publicKey), signature);
  } catch {
    return false;
  }
}

/** By the array that holds the bytes: those of a decoded certificate, which nobody changes. */
const keys = new WeakMap<Uint8Array, KeyObject>();

function keyOf(publicKey: Uint8Array): KeyObject {
  let key = keys.get(publicKey);
  if (key === undefined) {
    key = createPublicKey({ key: Buffer.from(concat(SPKI, publicKey)), format: 'der', type: 'spki' });
    keys.set(publicKey, key);
  }
  return key;
}

/** By the array that holds the seed: forgotten with it. Opening a key takes as long as a signature. */
const privateKeys = new WeakMap<Uint8Array, KeyObject>();

function privateKey(seed: Uint8Array): KeyObject {
  let key = privateKeys.get(seed);
  if (key === undefined) {
    const der = Buffer.from(concat(PKCS8, seed));
    try {
      key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
    } finally {
      der.fill(0);
    }
    privateKeys.set(seed, key);
  }
  return key;
}
