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
import { digest } from '../../wire/fields.ts';
import { decodeGenesis, type Genesis } from '../../wire/genesis.ts';
import { checkWords } from './attest.ts';
import { firstCommittee } from './ledger/ledger.ts';

/** By whose signatures what happened in an epoch holds. */
export interface Law {
  readonly genesis: Genesis;
  readonly networkId: Digest;
  /** Of that epoch. */
  readonly committee: Committee;
  /** Who sat in another epoch, by {@link Committee.digest}; undefined: nobody that is known here. */
  readonly committeeOf?: (digest: Digest) => Pick<Committee, 'validators'> | undefined;
}

const LAWS_MAX = 16;

const byCommittee = z.object({ challenge: z.object({ committee: digest }) });

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
   * The law of the committee with that digest, from the genesis and the documents that lead from it to there, each approved by a quorum of the committee before it.
   * Needs nothing else. Errors: `network-mismatch`, `epoch-invalid` (also when a document is missing).
   */
  async of(document: unknown, documents: readonly unknown[], committee: Digest): Promise<Law> {
    const key = digestOf(utf8(canonicalJson([document, documents, committee])));
    let law = this.#laws.get(key);
    if (law === undefined) {
      law = await lawOf(this.trust, document, documents, committee);
      this.#laws.set(key, law);
    }
    return law;
  }

  /** That of the committee by which the challenge of the proofs was issued; that of the genesis, by which they then do not hold, where nothing leads to it. */
  async ofProofs(proofs: unknown, document: unknown, documents: readonly unknown[] = []): Promise<Law> {
    // Who judges the proofs looks at the rest of them.
    const named = byCommittee.safeParse(proofs);
    if (!named.success) return firstLaw(document);
    try {
      return await this.of(document, documents, named.data.challenge.committee);
    } catch (error) {
      if (isCoded(error, 'epoch-invalid')) return firstLaw(document);
      throw error;
    }
  }
}

/** That of the committee in the genesis. */
function firstLaw(document: unknown): Law {
  const { genesis, networkId } = decodeGenesis(document);
  return { genesis, networkId, committee: firstCommittee(genesis, networkId) };
}

async function lawOf(
  trust: Pick<Trust, 'attested'>,
  document: unknown,
  documents: readonly unknown[],
  wanted: Digest,
): Promise<Law> {
  let { committee, ...law } = firstLaw(document);
  for (const value of documents) {
    if (committee.digest === wanted) break;
    committee = await successor(trust, committee, decodeEpochDocument(value), law.networkId);
  }
  if (committee.digest !== wanted)
    throw noSuccessor(`the documents lead to epoch ${committee.epoch}, and to no committee ${wanted}`);
  return { ...law, committee };
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
