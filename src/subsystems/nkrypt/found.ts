import { randomBytes } from 'node:crypto';
import { fromBase64, hex } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import { sha256 } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { decodeGenesis, GENESIS_TYPE, type Genesis } from '../../wire/genesis.ts';
import { OPERATION_KINDS, type OperationKind, type Requirements } from '../../wire/proof.ts';

const MIB = 2 ** 20;

/** How long an answer to an audit may take: less than it takes to compute 100 MiB of labels again at ten iterations. */
const DEADLINE_MS = 2_000;
const OPENINGS = 64;

const ACCESS: Omit<Requirements, 'kind'> = {
  space: { bytesMin: 10 * MIB, deadlineMs: DEADLINE_MS, openings: OPENINGS },
  stake: null,
  work: null,
  time: { squarings: 2 ** 16, windowMs: 60_000 },
};

/** What a network asks for unless its founder says otherwise. */
const DEFAULT_REQUIREMENTS: Readonly<Record<OperationKind, Requirements>> = {
  publish: {
    kind: 'publish',
    space: { bytesMin: 100 * MIB, deadlineMs: DEADLINE_MS, openings: OPENINGS },
    stake: { amountMin: 1_000 },
    work: { hexDigits: 6 },
    time: { squarings: 2 ** 20, windowMs: 300_000 },
  },
  install: { kind: 'install', ...ACCESS },
  execute: { kind: 'execute', ...ACCESS },
  default: {
    kind: 'default',
    space: { bytesMin: MIB, deadlineMs: DEADLINE_MS, openings: OPENINGS },
    stake: { amountMin: 100 },
    work: { hexDigits: 4 },
    time: { squarings: 2 ** 18, windowMs: 300_000 },
  },
};

export interface NetworkTerms {
  readonly requirements?: Partial<Record<OperationKind, Requirements>>;
  /** Size of each commitment, and hash iterations for each label. */
  readonly space?: { readonly bytes: number; readonly iterations?: number };
  /** Tokens of the founder: the home's publisher. */
  readonly stakeInitial?: number;
}

/**
 * A new network whose committee is this home's validator and whose first tokens are this home's publisher's.
 * As many of them as the table ever asks for are locked from the start. Errors: `config-invalid`.
 */
export async function foundNetwork(
  trust: Pick<Trust, 'identity' | 'anchor' | 'attest' | 'validatorKeys'>,
  clock: Clock,
  terms: NetworkTerms,
): Promise<Genesis> {
  const requirements = { ...DEFAULT_REQUIREMENTS, ...terms.requirements };
  const [publisher, validator, anchor] = await Promise.all([
    trust.identity('publisher'),
    trust.validatorKeys(),
    trust.anchor(),
  ]);
  const balance = terms.stakeInitial ?? 1_000_000;
  const asked = OPERATION_KINDS.map((kind) => requirements[kind].stake?.amountMin ?? 0);
  const unsigned: Omit<Genesis, 'approvals'> = {
    formatVersion: 2,
    createdAtMs: clock.nowMs(),
    nonce: hex(randomBytes(32)),
    root: hex(sha256(fromBase64(anchor.root))),
    committee: { epoch: 0, validators: [validator] },
    requirements,
    space: {
      scheme: 'hm-pospace-v1',
      bytes: terms.space?.bytes ?? 100 * MIB,
      iterations: terms.space?.iterations ?? 10,
      layers: 3,
      registrationOpenings: 96,
    },
    time: { scheme: 'wesolowski-rsa2048-v1' },
    work: { scheme: 'sha256-hashcash-v1' },
    stake: {
      ageMsMax: 3_600_000,
      accounts: [{ account: publisher.keyId, balance, locked: Math.min(balance, Math.max(...asked)) }],
    },
    limits: { clockSkewMs: 5_000, audits: 3 },
  };
  const approvals = [await trust.attest(GENESIS_TYPE, unsigned)];
  try {
    return decodeGenesis({ ...unsigned, approvals }).genesis;
  } catch (error) {
    throw new HyperMeshError('config-invalid', `These terms make no network: ${(error as Error).message}`, {
      hint: 'Check the configured requirements and the size of the space commitment.',
      cause: error,
    });
  }
}
