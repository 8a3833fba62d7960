import assert from 'node:assert/strict';
import { systemClock } from '../base/clock.ts';
import type { Consensus } from '../capabilities/consensus.ts';
import type { Trust } from '../capabilities/trust.ts';
import { checkEndorsement, judge, LawBook } from '../subsystems/nkrypt/index.ts';
import { ChainCache, signatureCheck, verifyEnvelope, wordHolds } from '../subsystems/trustchain/index.ts';

/** The judges of signatures and proofs without a home: everything they rely on arrives as an argument. */
export interface OfflineJudges {
  readonly trust: Pick<Trust, 'verify' | 'attested'>;
  readonly consensus: Pick<Consensus, 'verify' | 'verifyEndorsement'>;
}

/** Certificate chains and committees that were found valid are remembered for as long as the judges are kept. */
export function offlineJudges(): OfflineJudges {
  const cache = new ChainCache({ chainsMax: 64 });
  const trust: OfflineJudges['trust'] = {
    verify(envelope, chain, { role, atMs = systemClock.nowMs(), anchor }) {
      assert(anchor, 'an offline verification is given its anchor');
      return verifyEnvelope(envelope, chain, anchor, { role, atMs, cache });
    },
    attested: async (...word) => wordHolds(...word),
  };
  const laws = new LawBook(trust);
  return {
    trust,
    consensus: {
      async verify(proofs, { atMs = systemClock.nowMs(), genesis: document, epochs } = {}) {
        assert(document, 'an offline verification is given its genesis');
        return judge(proofs, { trust, ...(await laws.ofProofs(proofs, document, epochs)), atMs });
      },
      verifyEndorsement: (endorsement, options) => checkEndorsement(laws, endorsement, options),
    },
  };
}

export { signatureCheck };
