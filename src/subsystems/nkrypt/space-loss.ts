import type { Digest } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { Attestation } from '../../wire/attestation.ts';
import { type Entry, encodeEntry, SPACE_LOST_TYPE, type SpaceLostStatement } from '../../wire/entry.ts';
import type { Committee } from '../../wire/epoch.ts';
import { quorumOf } from '../../wire/genesis.ts';
import { decodeSpaceAudit, encodeSpaceAudit, lostAnswer, SPACE_AUDIT_LIMITS } from '../../wire/space-audit.ts';

/** Where the other validators are. */
export interface Seat {
  readonly node: string;
  /** Key id of its validator. */
  readonly validator: string;
}

export interface LossLent {
  readonly trust: Pick<Trust, 'attest' | 'attested'>;
  readonly seats: () => readonly Seat[];
  readonly ask: (
    node: string,
    method: string,
    body: Uint8Array,
    options: { readonly replyBytesMax: number; readonly timeoutMs?: number },
  ) => Promise<Uint8Array>;
}

export interface LossTerms {
  readonly networkId: Digest;
  readonly committee: Committee;
  /** Key id of this home's validator. */
  readonly self: string;
}

/**
 * The entry which says that an identity lost its commitment, when a quorum of the validators saw that, each by audits of its own; undefined when
 * fewer did. Safe to repeat: the same validators give the same entry, which the order applies once.
 */
export async function lossEntry(
  { trust, seats, ask }: LossLent,
  { networkId, committee, self }: LossTerms,
  account: string,
  root: string,
): Promise<Uint8Array | undefined> {
  const { validators } = committee;
  const statement: SpaceLostStatement = { networkId, committee: committee.digest, account, root };
  const body = encodeSpaceAudit({ account, root });
  const words = await Promise.all(
    validators.map(async (keys): Promise<Attestation | null> => {
      if (keys.key === self) return trust.attest(SPACE_LOST_TYPE, statement);
      const seat = seats().find(({ validator }) => validator === keys.key);
      if (seat === undefined) return null;
      try {
        const options = { replyBytesMax: SPACE_AUDIT_LIMITS.answerBytesMax };
        const { attestation } = decodeSpaceAudit(lostAnswer, await ask(seat.node, 'space/lost', body, options));
        if (attestation?.validator !== keys.key) return null;
        return (await trust.attested(attestation, SPACE_LOST_TYPE, statement, keys)) ? attestation : null;
      } catch (error) {
        // Who is away or cannot be understood has not said it.
        if (isCoded(error)) return null;
        throw error;
      }
    }),
  );
  const said = words.filter((word) => word !== null).sort((a, b) => (a.validator < b.validator ? -1 : 1));
  if (said.length < quorumOf(validators.length)) return undefined;
  const entry: Entry = { formatVersion: 1, networkId, kind: 'space-lost', statement, attestations: said };
  return encodeEntry(entry);
}
