import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { SignatureCheck } from '../../../wire/attestation.ts';
import type { Committee } from '../../../wire/epoch.ts';
import type { Genesis } from '../../../wire/genesis.ts';
import type { Draft } from './facts.ts';

/** What the rules of a network count with. */
export interface LedgerTerms {
  readonly networkId: Digest;
  /** Locked tokens that a claim needs: those of a publish. */
  readonly claimLockedMin: number;
  /** From an unlock until its tokens are free: as long as it takes to bring evidence. */
  readonly unbondingMs: number;
  /** Of what answers for an account, in percent, rounded up: burned for two conflicting statements, and for a lost commitment. */
  readonly equivocationPercent: number;
  readonly spaceLostPercent: number;
}

const DAY_MS = 86_400_000;

export function termsOf(genesis: Genesis, networkId: Digest): LedgerTerms {
  return {
    networkId,
    claimLockedMin: genesis.requirements.publish.stake?.amountMin ?? 0,
    unbondingMs: 7 * DAY_MS,
    equivocationPercent: 50,
    spaceLostPercent: 5,
  };
}

/** Where one entry is applied. */
export interface Place {
  readonly draft: Draft;
  readonly index: number;
  readonly terms: LedgerTerms;
  /** The same answer on every machine and at every time: no certificates, lists or clocks. */
  readonly check: SignatureCheck;
  /** By its digest; undefined: none that was in office yet. */
  committeeOf(digest: Digest): Committee | undefined;
}

/** Names under which facts are stored. Numbers are padded, so that text order is their order. */
export const KEYS = {
  /** How many entries were applied. */
  index: 'index',
  /** All tokens that the network was founded with, and those that were burned. */
  supply: 'supply',
  burned: 'burned',
  /** What the clocks of the committee agree has passed. */
  time: 'time',
  epoch: 'epoch',
  sequencer: 'sequencer',
  account: (id: string) => `account/${id}`,
  unbonding: (account: string, index: number) => `unbonding/${account}/${padded(index)}`,
  /** Of a scope, or of `scope/name`. */
  name: (name: string) => `name/${name}`,
  grant: (from: string, id: string) => `grant/${from}/${id}`,
  clock: (validator: string) => `clock/${validator}`,
  /** `scope/name@version` without build metadata. */
  version: (ref: string) => `version/${ref.split('+')[0]!}`,
  /** What was voted for and not certified when an epoch ended. */
  handed: (identity: string, sequence: number) => `handed/${identity}/${padded(sequence)}`,
  /** What was certified under a number, while its epoch is not over. */
  settled: (epoch: number, identity: string, sequence: number) =>
    `settled/${padded(epoch)}/${identity}/${padded(sequence)}`,
  evidence: (about: string) => `evidence/${about}`,
  /** The root follows from the identity: whoever registers again has the same, and can lose it again in the next epoch. */
  spaceLost: (epoch: number, account: string, root: string) => `space-lost/${epoch}/${account}/${root}`,
} as const;

function padded(value: number): string {
  return String(value).padStart(16, '0');
}

export function refuse(code: ConstructorParameters<typeof HyperMeshError>[0], message: string, hint?: string): never {
  throw new HyperMeshError(code, message, hint === undefined ? {} : { hint });
}
