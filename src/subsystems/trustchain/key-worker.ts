import { parentPort, workerData } from 'node:worker_threads';
import { HyperMeshError, type ProblemDocument, toProblem } from '../../base/errors.ts';
import { yieldPriority } from '../../base/yield-priority.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import { generateEd25519, signAllEd25519, signEd25519 } from './ed25519.ts';
import { createFalcon } from './falcon.ts';
import { type KeyName, type SecretKeys, sealKeys, type Unlock, unsealKeys } from './keystore.ts';

/** Where secret keys are used in the clear. They arrive sealed, are opened here, and vanish with this thread. */

export interface KeyWorkerData {
  readonly unlock: Unlock;
  readonly sealed: readonly string[];
}

export type KeyRequest =
  /** Seals one document for each list of names; keys that are not there yet are made. */
  | { readonly id: number; readonly kind: 'seal'; readonly documents: readonly (readonly KeyName[])[] }
  /** Opens these documents instead of those before; keys that are in none of them are forgotten. */
  | { readonly id: number; readonly kind: 'open'; readonly sealed: readonly string[] }
  | {
      readonly id: number;
      readonly kind: 'sign';
      readonly key: KeyName;
      readonly algorithm: 'falcon' | 'ed25519' | 'both';
      readonly bytes: Uint8Array;
    }
  /** Ed25519 alone, many at once. */
  | { readonly id: number; readonly kind: 'sign-all'; readonly key: KeyName; readonly messages: readonly Uint8Array[] }
  | { readonly id: number; readonly kind: 'public' };

export type KeyAnswer =
  | { readonly kind: 'seal'; readonly sealed: readonly string[] }
  | { readonly kind: 'open' }
  | { readonly kind: 'sign'; readonly falcon: Uint8Array | null; readonly ed25519: Uint8Array | null }
  | { readonly kind: 'sign-all'; readonly signatures: readonly Uint8Array[] }
  | { readonly kind: 'public'; readonly keys: ReadonlyMap<KeyName, PublicKeys> };

export type KeyReply =
  | { readonly id: number; readonly answer: KeyAnswer }
  | { readonly id: number; readonly problem: ProblemDocument; readonly detail: string };

yieldPriority();
const { unlock, sealed } = workerData as KeyWorkerData;
const falcon = createFalcon();
let opened: Map<KeyName, SecretKeys> | undefined;

function keys(): Map<KeyName, SecretKeys> {
  opened ??= open(sealed);
  return opened;
}

function open(documents: readonly string[]): Map<KeyName, SecretKeys> {
  return new Map(documents.flatMap((text) => [...unsealKeys(text, unlock)]));
}

function answer(request: KeyRequest): KeyAnswer {
  switch (request.kind) {
    case 'seal': {
      const known = keys();
      const take = (name: KeyName): [KeyName, SecretKeys] => {
        const key = known.get(name) ?? generate();
        known.set(name, key);
        return [name, key];
      };
      return {
        kind: 'seal',
        sealed: request.documents.map((names) => sealKeys(new Map(names.map(take)), unlock)),
      };
    }
    case 'open':
      opened = open(request.sealed);
      return { kind: 'open' };
    case 'sign': {
      const key = secretOf(request.key);
      return {
        kind: 'sign',
        falcon: request.algorithm === 'ed25519' ? null : falcon.sign(request.bytes, key.falconSecret),
        ed25519: request.algorithm === 'falcon' ? null : signEd25519(request.bytes, key.ed25519Seed),
      };
    }
    case 'sign-all':
      return { kind: 'sign-all', signatures: signAllEd25519(request.messages, secretOf(request.key).ed25519Seed) };
    case 'public':
      return {
        kind: 'public',
        keys: new Map(
          [...keys()].map(([name, key]) => [name, { falcon: key.falconPublic, ed25519: key.ed25519Public }]),
        ),
      };
  }
}

function secretOf(name: KeyName): SecretKeys {
  const key = keys().get(name);
  if (key !== undefined) return key;
  throw new HyperMeshError('key-locked', `The ${name} key is not in this home.`, {
    hint: 'It is kept elsewhere on purpose, or was lost; bring it back to do this.',
  });
}

function generate(): SecretKeys {
  const post = falcon.generate();
  const classic = generateEd25519();
  return {
    falconSecret: post.secretKey,
    falconPublic: post.publicKey,
    ed25519Seed: classic.seed,
    ed25519Public: classic.publicKey,
  };
}

parentPort?.on('message', (request: KeyRequest) => {
  const { id } = request;
  try {
    parentPort?.postMessage({ id, answer: answer(request) } satisfies KeyReply);
  } catch (error) {
    const detail = error instanceof Error ? error.message : 'unknown';
    parentPort?.postMessage({ id, problem: toProblem(error), detail } satisfies KeyReply);
  }
});
