/** The work proof: SHA-256 of a 64-byte block (domain, context) and a 64-bit nonce starts with some zero hex digits. */
import { concat, fromHex, hex, u64be, utf8 } from '../../base/bytes.ts';
import { type Digest, sha256 } from '../../base/digest.ts';
import type { WorkProof } from '../../wire/proof.ts';

/** With as many, a search takes less time than the proof of time beside it, also under load; each is a heap of its own, some 20 MiB. */
const THREADS_MAX = 4;

/** How many threads search on a machine with so many processors, unless its owner says. The time proof, which takes the longest, has one for itself. */
export function workThreads(processors: number): number {
  return Math.max(1, Math.min(THREADS_MAX, processors - 1));
}

/** `hm-work-v1`, zeros up to 32 bytes, then the context: one block of SHA-256, so that its state is computed once. */
export function workPrefix(context: Digest): Uint8Array {
  const prefix = new Uint8Array(64);
  prefix.set(utf8('hm-work-v1'));
  prefix.set(fromHex(context.slice(7)), 32);
  return prefix;
}

export function isSolution(prefix: Uint8Array, hexDigits: number, nonce: bigint): boolean {
  return hex(sha256(concat(prefix, u64be(nonce)))).startsWith('0'.repeat(hexDigits));
}

/** A sentence when the proof is wrong, undefined when it holds. One hash. */
export function checkWork(context: Digest, hexDigits: number, proof: WorkProof): string | undefined {
  return isSolution(workPrefix(context), hexDigits, BigInt(`0x${proof.nonce}`))
    ? undefined
    : `the hash does not start with ${hexDigits} zero hex digits`;
}

export function workProof(nonce: bigint): WorkProof {
  return { nonce: nonce.toString(16).padStart(16, '0') };
}
