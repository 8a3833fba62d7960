import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { type Attestation, attestation, type ValidatorKeys, validatorKeys } from './attestation.ts';
import { hex32, tokens } from './fields.ts';
import { OPERATION_KINDS, type Requirements, requirements } from './proof.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { firstIssue } from './signature.ts';

/** Size limit of the canonical JSON of a genesis document. */
export const GENESIS_BYTES_MAX = 512 * 2 ** 10;

const schema = z
  .strictObject({
    formatVersion: z.literal(2, 'this version reads format 2'),
    createdAtMs: z.int().nonnegative(),
    /** 32 random bytes: two networks made alike at the same time still differ. */
    nonce: hex32,
    /** SHA-256 of the root certificate (DER). */
    root: hex32,
    committee: z.strictObject({
      epoch: z.int().nonnegative(),
      /** Ascending by key id. */
      validators: z.array(validatorKeys).min(1).max(PROOF_LIMITS.committeeMax),
    }),
    /** One row for each kind of operation. */
    requirements: z.strictObject({
      publish: requirements,
      install: requirements,
      execute: requirements,
      default: requirements,
    }),
    /** HM-PoSpace v1: size of a commitment and hash iterations for each label. */
    space: z.strictObject({
      scheme: z.literal('hm-pospace-v1'),
      bytes: z.int().min(65_536).max(PROOF_LIMITS.spaceBytesMax).multipleOf(65_536),
      iterations: z.int().min(2).max(1_000),
      layers: z.literal(3),
      registrationOpenings: z.int().min(16).max(PROOF_LIMITS.openingsMax),
    }),
    time: z.strictObject({ scheme: z.literal('wesolowski-rsa2048-v1', 'this version knows wesolowski-rsa2048-v1') }),
    work: z.strictObject({ scheme: z.literal('sha256-hashcash-v1') }),
    stake: z.strictObject({
      /** How old a statement of the ledger may be. */
      ageMsMax: z.int().positive().max(PROOF_LIMITS.windowMsMax),
      accounts: z.array(z.strictObject({ account: hex32, balance: tokens, locked: tokens })).max(10_000),
    }),
    limits: z.strictObject({
      /** How far the clocks of honest members may be apart. */
      clockSkewMs: z.int().nonnegative().max(600_000),
      /** Audits of one operation. */
      audits: z.literal(3),
    }),
    /** The word of each validator over the document without this member, in the order in which they are named. */
    approvals: z.array(attestation).min(1).max(PROOF_LIMITS.committeeMax),
  })
  .superRefine((value, context) => {
    const problem = (message: string) => context.addIssue({ code: 'custom', message });
    for (const kind of OPERATION_KINDS) {
      const row = value.requirements[kind];
      if (row.kind !== kind) problem(`requirements.${kind} is a row for ${row.kind}`);
      if (row.space !== null && row.space.bytesMin > value.space.bytes)
        problem(`requirements.${kind} asks for more space than a commitment has`);
    }
    const keys = value.committee.validators.map(({ key }) => key);
    if (keys.some((key, i) => i > 0 && keys[i - 1]! >= key)) problem('the validators are not in ascending order');
    if (keys.join() !== value.approvals.map(({ validator }) => validator).join())
      problem('not every validator, and nobody else, approved the document');
    if (new Set(value.stake.accounts.map(({ account }) => account)).size !== value.stake.accounts.length)
      problem('an account is named twice');
    if (value.stake.accounts.some(({ balance, locked }) => locked > balance))
      problem('an account has more locked than it has');
    if (value.stake.accounts.reduce((sum, { balance }) => sum + balance, 0) > PROOF_LIMITS.tokensMax)
      problem('the supply is too large');
  });

/** What a network is: who votes, what it asks for, who owns what at the start. Never changes; its digest, signatures included, is the network id. */
export interface Genesis {
  readonly formatVersion: 2;
  readonly createdAtMs: number;
  readonly nonce: string;
  readonly root: string;
  readonly committee: {
    readonly epoch: number;
    readonly validators: readonly ValidatorKeys[];
  };
  readonly requirements: Readonly<Record<(typeof OPERATION_KINDS)[number], Requirements>>;
  readonly space: {
    readonly scheme: 'hm-pospace-v1';
    readonly bytes: number;
    readonly iterations: number;
    readonly layers: 3;
    readonly registrationOpenings: number;
  };
  readonly time: { readonly scheme: 'wesolowski-rsa2048-v1' };
  readonly work: { readonly scheme: 'sha256-hashcash-v1' };
  readonly stake: {
    readonly ageMsMax: number;
    readonly accounts: readonly { readonly account: string; readonly balance: number; readonly locked: number }[];
  };
  readonly limits: { readonly clockSkewMs: number; readonly audits: 3 };
  readonly approvals: readonly Attestation[];
}

/** Type of what validators sign to approve a genesis document. */
export const GENESIS_TYPE = 'application/vnd.hypermesh.genesis.v2+json';

/** Errors: `network-mismatch` when the document is not a genesis of a known version. */
export function decodeGenesis(document: unknown): { readonly genesis: Genesis; readonly networkId: Digest } {
  const parsed = schema.safeParse(document);
  if (!parsed.success) {
    throw new HyperMeshError('network-mismatch', `Expected a genesis document, but ${firstIssue(parsed.error)}.`, {
      hint: 'The document was altered, or was made by another version of HyperMesh.',
    });
  }
  const bytes = utf8(canonicalJson(parsed.data));
  if (bytes.length > GENESIS_BYTES_MAX) {
    throw new HyperMeshError('limit-exceeded', `A genesis document has at most ${GENESIS_BYTES_MAX} bytes.`);
  }
  return { genesis: parsed.data, networkId: digestOf(bytes) };
}

/** The document as plain data, ready for a bundle. */
export function genesisDocument(genesis: Genesis): Json {
  return JSON.parse(canonicalJson(genesis)) as Json;
}

/** The least number of distinct members whose word is the committee's: 2f+1 of n = 3f+1 (for other n, more than two thirds). */
export function quorumOf(members: number): number {
  return Math.floor((2 * members) / 3) + 1;
}
