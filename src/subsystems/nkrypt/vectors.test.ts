import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { hex } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import type { Json } from '../../base/json.ts';
import type { Endorsement, ProofSet, TimeProof, WorkProof } from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';
import { wordHolds } from '../trustchain/index.ts';
import { checkEndorsement, LawBook } from './index.ts';
import { judge } from './judge.ts';
import { auditPositions } from './registration.ts';
import { labelSeed, parentsOf } from './space-graph.ts';
import { checkTime } from './time.ts';
import { checkWork } from './work.ts';

type Vector =
  | { readonly kind: 'context' }
  | { readonly kind: 'work'; readonly context: Digest; readonly hexDigits: number; readonly proof: WorkProof }
  | { readonly kind: 'time'; readonly context: Digest; readonly squarings: number; readonly proof: TimeProof }
  | {
      readonly kind: 'labels';
      readonly networkId: string;
      readonly identity: string;
      readonly seed: string;
      readonly n: number;
      readonly labels: readonly {
        readonly layer: number;
        readonly label: number;
        readonly parents: Record<string, number | null>;
      }[];
    }
  | {
      readonly kind: 'positions';
      readonly beacon: string;
      readonly context: string;
      readonly root: string;
      readonly n: number;
      readonly openings: number;
      readonly positions: readonly number[];
    }
  | {
      readonly kind: 'set';
      readonly genesis: Json;
      readonly anchor: TrustAnchor;
      readonly atMs: number;
      readonly proofs: ProofSet;
      readonly endorsement: Endorsement;
      readonly verdicts: Record<string, string>;
    };
type SetVector = Extract<Vector, { kind: 'set' }>;

function read<T>(file: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../../test/vectors/proof/${file}.json`, import.meta.url), 'utf8')) as T[];
}

const valid = read<Vector & { readonly name: string }>('valid');

/** Nothing but the arguments: no home, no disk. */
const offline: LawBook['trust'] = { attested: async (...word) => wordHolds(...word) };

const laws = new LawBook(offline);

async function verdicts(vector: SetVector, proofs: unknown, atMs: number): Promise<Record<string, string>> {
  const court = { trust: offline, ...(await laws.ofProofs(proofs, vector.genesis)), atMs };
  return Object.fromEntries((await judge(proofs, court)).map(({ kind, verdict }) => [kind, verdict]));
}

for (const vector of valid) {
  test(`vector holds: ${vector.name}`, async () => {
    switch (vector.kind) {
      case 'context':
        break;
      case 'work':
        assert.equal(checkWork(vector.context, vector.hexDigits, vector.proof), undefined);
        break;
      case 'time':
        assert.equal(checkTime(vector.context, vector.squarings, vector.proof), undefined);
        break;
      case 'labels':
        assert.equal(hex(labelSeed(vector.networkId, vector.identity)), vector.seed);
        for (const { layer, label, parents } of vector.labels) {
          const found = parentsOf(layer, label, vector.n);
          assert.deepEqual(
            { before: found.before ?? null, far: found.far ?? null, below: found.below ?? null },
            parents,
          );
        }
        break;
      case 'positions': {
        const { beacon, context, root, n, openings } = vector;
        assert.deepEqual(auditPositions(beacon, context, root, n, openings), vector.positions);
        break;
      }
      case 'set':
        assert.deepEqual(await verdicts(vector, vector.proofs, vector.atMs), vector.verdicts);
        await checkEndorsement(new LawBook(offline), vector.endorsement, vector);
        break;
    }
  });
}

interface Change {
  readonly why: string;
  readonly set: string;
  readonly path?: string;
  readonly value?: unknown;
  readonly atMs?: number;
  readonly verdicts: Record<string, string>;
}

for (const change of read<Change>('invalid')) {
  test(`vector is refused: ${change.why}`, async () => {
    const vector = valid.find(({ name }) => name === change.set) as SetVector & { name: string };
    const proofs = structuredClone(vector.proofs) as unknown as Record<string, unknown>;
    if (change.path !== undefined) {
      const keys = change.path.split('.');
      const last = keys.pop()!;
      let at = proofs;
      for (const key of keys) at = at[key] as Record<string, unknown>;
      at[last] = change.value;
    }
    assert.deepEqual(await verdicts(vector, proofs, change.atMs ?? vector.atMs), change.verdicts);
  });
}
