import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import { utf8 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
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

const LAWS_MAX = 16;

const inEpoch = z.object({ challenge: z.object({ epoch: z.int().nonnegative() }) });

/**
 * Laws of epochs, each found once: who checks a bundle asks for the same one for each of its parts, and a home for every package. By the text of what
 * a law follows from, and only laws that hold.
 */
export class LawBook {
  readonly trust: Pick<Trust, 'attested'>;
  readonly #laws = new LRUCache<string, Law>({ max: LAWS_MAX });

  constructor(trust: Pick<Trust, 'attested'>) {
    this.trust = trust;
  }

  /**
   * The law of an epoch, from the genesis and the documents that lead from it to there, each approved by a quorum of the committee before it. Needs nothing
   * else. Errors: `network-mismatch`, `epoch-invalid` (also when a document is missing).
   */
  async of(document: unknown, documents: readonly unknown[], epoch: number): Promise<Law> {
    const key = digestOf(utf8(canonicalJson([document, documents, epoch])));
    let law = this.#laws.get(key);
    if (law === undefined) {
      law = await lawOf(this.trust, document, documents, epoch);
      this.#laws.set(key, law);
    }
    return law;
  }

  /** That of the epoch in which the challenge of the proofs was issued; that of the genesis, by which they then do not hold, where nothing leads to it. */
  async ofProofs(proofs: unknown, document: unknown, documents: readonly unknown[] = []): Promise<Law> {
    // Who judges the proofs looks at the rest of them.
    const dated = inEpoch.safeParse(proofs);
    if (!dated.success) return decodeGenesis(document);
    try {
      return await this.of(document, documents, dated.data.challenge.epoch);
    } catch (error) {
      if (isCoded(error, 'epoch-invalid')) return decodeGenesis(document);
      throw error;
    }
  }
}

async function lawOf(
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
