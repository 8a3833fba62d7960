import { LRUCache } from 'lru-cache';
import { base64, equal } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import {
  ATTESTATION_LIMITS,
  type Attestation,
  attestationHolds,
  attestedBytes,
  batchBytes,
  type FastAttestation,
  publicKeysOf,
  type SignatureCheck,
  sealed,
  type ValidatorKeys,
} from '../../wire/attestation.ts';
import { keyIdOf, type PublicKeys } from '../../wire/key-id.ts';
import { leafHash, nodeHash } from '../../wire/log.ts';
import { type Envelope, opened } from '../../wire/signature.ts';
import { verifyEd25519 } from './ed25519.ts';
import { falconVerifier } from './falcon.ts';

/** Statements that wait to be signed at the same time, at most. */
const WAITING_MAX = 10_000;
/** Validators whose decoded keys are remembered. */
const KEYS_MAX = 256;

interface Seal {
  readonly falcon: Uint8Array;
  readonly path: readonly Uint8Array[];
  readonly index: number;
  readonly size: number;
}

/** The signatures of a home's validator. */
export interface AttesterLent {
  ed25519(messages: readonly Uint8Array[]): Promise<readonly Uint8Array[]>;
  falcon(message: Uint8Array): Promise<Uint8Array>;
}

/**
 * Signs what the validator of this home says. Each signer takes what waits as soon as it is free, all of it in one batch and without a timer: an idle
 * home signs one statement alone, a busy one many for the price of one.
 */
export class Attester {
  readonly #fast: Queue<Uint8Array, Uint8Array>;
  readonly #seals: Queue<Uint8Array, Seal>;

  constructor(lent: AttesterLent) {
    this.#fast = new Queue((messages) => lent.ed25519(messages));
    this.#seals = new Queue(async (leaves) => {
      const levels = treeOver(leaves);
      const falcon = await lent.falcon(batchBytes(levels.at(-1)![0]!));
      return leaves.map((_, index) => ({ falcon, path: pathOf(levels, index), index, size: leaves.length }));
    });
  }

  async attestFast(validator: string, payloadType: string, statement: unknown): Promise<FastAttestation> {
    const signature = await this.#fast.add(attestedBytes(payloadType, statement));
    return { validator, ed25519: base64(signature) };
  }

  async attest(validator: string, payloadType: string, statement: unknown): Promise<Attestation> {
    const bytes = attestedBytes(payloadType, statement);
    const [signature, seal] = await Promise.all([this.#fast.add(bytes), this.#seals.add(leafHash(bytes))]);
    return sealed({ validator, ed25519: base64(signature) }, seal);
  }
}

/** What waits is worked off in batches, one batch at a time, in the order of arrival. */
class Queue<I, O> {
  readonly #work: (batch: readonly I[]) => Promise<readonly O[]>;
  #waiting: { readonly item: I; resolve(value: O): void; reject(error: unknown): void }[] = [];
  #running = false;

  constructor(work: (batch: readonly I[]) => Promise<readonly O[]>) {
    this.#work = work;
  }

  add(item: I): Promise<O> {
    if (this.#waiting.length >= WAITING_MAX) {
      const message = `${WAITING_MAX} statements are waiting to be signed already.`;
      return Promise.reject(new HyperMeshError('quota-exceeded', message, { hint: 'Try again in a moment.' }));
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ item, resolve, reject });
      if (!this.#running) void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    // What is added in the same step of the event loop goes together.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, ATTESTATION_LIMITS.batchMax);
      try {
        const made = await this.#work(batch.map(({ item }) => item));
        for (const [at, { resolve }] of batch.entries()) resolve(made[at]!);
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    this.#running = false;
  }
}

/** Levels of the tree of RFC 6962 over hashed leaves, the root last. A node without a sibling moves up as it is. */
function treeOver(leaves: readonly Uint8Array[]): readonly (readonly Uint8Array[])[] {
  const levels: (readonly Uint8Array[])[] = [leaves];
  for (let level = leaves; level.length > 1; levels.push(level)) {
    const below = level;
    level = Array.from({ length: Math.ceil(below.length / 2) }, (_, i) => {
      const right = below[2 * i + 1];
      return right === undefined ? below[2 * i]! : nodeHash(below[2 * i]!, right);
    });
  }
  return levels;
}

function pathOf(levels: readonly (readonly Uint8Array[])[], index: number): readonly Uint8Array[] {
  return levels.slice(0, -1).flatMap((level, height) => level[Math.floor(index / 2 ** height) ^ 1] ?? []);
}

/** The arithmetic of both signatures, for whoever has his own idea of what they should say. */
export const signatureCheck: SignatureCheck = {
  ed25519: verifyEd25519,
  falcon: (signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array) =>
    falconVerifier().verify(signature, message, publicKey),
};

interface Known {
  readonly falcon: string;
  readonly keys: PublicKeys;
  readonly keyId: string;
}

const decoded = new Map<string, Known>();

/** By the text of the keys: decoding them, and opening the Ed25519 key, takes as long as a signature. */
function known({ falcon, ed25519 }: Pick<ValidatorKeys, 'falcon' | 'ed25519'>): Known {
  const found = decoded.get(ed25519);
  if (found?.falcon === falcon) return found;
  const keys = publicKeysOf({ falcon, ed25519 });
  const made = { falcon, keys, keyId: keyIdOf(keys) };
  const [oldest] = decoded.keys();
  if (decoded.size >= KEYS_MAX && oldest !== undefined) decoded.delete(oldest);
  decoded.set(ed25519, made);
  return made;
}

/** Whether both signatures of an envelope are by these keys. Its form was checked before; false for what cannot be decoded. */
export function envelopeHolds(envelope: Envelope, keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>): boolean {
  try {
    const { keyId, signed, ed25519, falcon } = opened(envelope);
    const by = known(keys);
    return (
      keyId === by.keyId &&
      signatureCheck.ed25519(ed25519, signed, by.keys.ed25519) &&
      signatureCheck.falcon(falcon, signed, by.keys.falcon)
    );
  } catch {
    return false;
  }
}

/** FALCON signatures that were found good, by their hash, with what they are of and by which key: votes that were sealed together share one. */
const seals = new LRUCache<Digest, { readonly root: Uint8Array; readonly publicKey: Uint8Array }>({ max: 1_000 });

function sealHolds(signature: Uint8Array, root: Uint8Array, publicKey: Uint8Array): boolean {
  const id = digestOf(signature);
  const good = seals.get(id);
  if (good !== undefined && equal(good.root, root) && equal(good.publicKey, publicKey)) return true;
  const holds = falconVerifier().verify(signature, root, publicKey);
  if (holds) seals.set(id, { root, publicKey });
  return holds;
}

const wordCheck: SignatureCheck = { ed25519: verifyEd25519, falcon: sealHolds };

/** Whether the word holds under these keys alone: no disk, no network, no home. Its form was checked before. */
export function wordHolds(
  word: FastAttestation | Attestation,
  payloadType: string,
  statement: unknown,
  keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>,
): boolean {
  return attestationHolds(word, payloadType, statement, known(keys).keys, wordCheck);
}
