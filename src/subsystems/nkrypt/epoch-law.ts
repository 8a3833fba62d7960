import type { Digest } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import type { Trust } from '../../capabilities/trust.ts';
import {
  type Committee,
  decodeEpochDocument,
  EPOCH_TYPE,
  type EpochDocument,
  noSuccessor,
  proposalOf,
  succeed,
} from '../../wire/epoch.ts';
import { decodeGenesis, type Genesis } from '../../wire/genesis.ts';
import { proofSetShell } from '../../wire/proof.ts';
import { checkWords } from './attest.ts';
import { firstCommittee } from './ledger/ledger.ts';

/** By whose signatures what happened in an epoch holds. */
export interface Law {
  /** With the committee of that epoch in the place of the first one. */
  readonly genesis: Genesis;
  readonly networkId: Digest;
  /** Who sat in another epoch; undefined: nobody that is known here. */
  readonly committeeOf?: (epoch: number) => Pick<Committee, 'validators'> | undefined;
}

/**
 * The law of an epoch, from the genesis and the documents that lead from it to there, each approved by a quorum of the committee before it. Needs nothing
 * else. Errors: `network-mismatch`, `epoch-invalid` (also when a document is missing).
 */
export async function lawOf(
  trust: Pick<Trust, 'attested'>,
  document: unknown,
  documents: readonly unknown[],
  epoch: number,
): Promise<Law> {
  const { genesis, networkId } = decodeGenesis(document);
  let committee = firstCommittee(genesis, networkId);
  for (const value of documents) {
    if (committee.epoch === epoch) break;
    committee = await successor(trust, committee, decodeEpochDocument(value), networkId);
  }
  if (committee.epoch !== epoch)
    throw noSuccessor(`the documents lead to epoch ${committee.epoch}, and not to ${epoch}`);
  return { genesis: { ...genesis, committee: { epoch, validators: committee.validators } }, networkId };
}

/** The committee that the document makes of the one before it, a quorum of which approved it. Errors: `epoch-invalid`. */
export async function successor(
  trust: Pick<Trust, 'attested'>,
  before: Committee,
  document: EpochDocument,
  networkId: Digest,
): Promise<Committee> {
  const after = succeed(before, document, networkId);
  const statement = proposalOf(document);
  const words = document.approvals.map((attestation) => ({ attestation, statement }));
  try {
    await checkWords(words, { trust, validators: before.validators, payloadType: EPOCH_TYPE });
  } catch (error) {
    throw noSuccessor((error as Error).message);
  }
  return after;
}

/** That of the epoch in which the challenge of the proofs was issued; that of the genesis, by which they then do not hold, where nothing leads to it. */
export async function lawOfProofs(
  trust: Pick<Trust, 'attested'>,
  proofs: unknown,
  document: unknown,
  documents: readonly unknown[] = [],
): Promise<Law> {
  const shell = proofSetShell.safeParse(proofs);
  const first = decodeGenesis(document);
  if (!shell.success) return first;
  try {
    return await lawOf(trust, document, documents, shell.data.challenge.epoch);
  } catch (error) {
    if (isCoded(error, 'epoch-invalid')) return first;
    throw error;
  }
}
