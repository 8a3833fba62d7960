import { z } from 'zod';
import type { Digest } from '../../../base/digest.ts';
import { canonicalJson } from '../../../base/json.ts';
import { attestationHolds, publicKeysOf } from '../../../wire/attestation.ts';
import { type Conflict, decodeOrder, keyBytes, type Word } from '../../../wire/entry.ts';
import { digest } from '../../../wire/fields.ts';
import { HEAD_TYPE, PREPARE_TYPE, type PrepareStatement } from '../../../wire/order.ts';
import { type Operation, operation, operationDigest, VOTE_TYPE } from '../../../wire/proof.ts';
import { envelopeHolds } from '../../../wire/signature.ts';
import { changeAccount, isKnown, slash } from './accounts.ts';
import { presentOf } from './committees.ts';
import { KEYS, type Place, refuse } from './law.ts';

/** Of the statements only what can contradict itself is read; the rest is covered by the signature. */
const vote = z.looseObject({ networkId: digest, committee: digest, operation });
const logHead = z.looseObject({
  networkId: digest,
  committee: digest,
  view: z.int().nonnegative(),
  index: z.int().nonnegative(),
  head: z.string(),
});

/**
 * Two signed statements that contradict each other: who signed them is suspended until the epoch ends, and pays, once for each thing that it
 * contradicted itself about. Errors: `entry-invalid` (no contradiction, or not signed), `network-mismatch`, `proof-replayed`.
 */
export function judgeConflict(place: Place, conflict: Conflict): void {
  const { draft, terms } = place;
  const { account, about } = conflict.kind === 'orders' ? byPublisher(place, conflict) : byValidator(place, conflict);
  const key = KEYS.evidence(about);
  if (draft.get(key) !== undefined) refuse('proof-replayed', 'This contradiction was answered for before.');
  draft.set(key, account);
  slash(draft, account, terms.equivocationPercent);
  // An account that nobody knows has nothing to lose and can do nothing.
  if (isKnown(draft, account)) changeAccount(draft, account, { suspended: presentOf(draft).epoch });
}

function byPublisher(
  { terms, check }: Place,
  { keys, first, second }: Extract<Conflict, { kind: 'orders' }>,
): { readonly account: string; readonly about: string } {
  const [a, b] = [first, second].map((envelope) => {
    const { networkId, operation } = decodeOrder({ keys, envelope });
    if (networkId !== terms.networkId) refuse('network-mismatch', 'An order is for another network.');
    return operation;
  }) as [z.infer<typeof operation>, z.infer<typeof operation>];
  if (a.sequence !== b.sequence || operationDigest(a) === operationDigest(b)) {
    refuse('entry-invalid', 'The two orders do not contradict each other.');
  }
  if (![first, second].every((envelope) => envelopeHolds(envelope, keyBytes(keys), check))) {
    refuse('entry-invalid', 'The signatures of an order do not hold.');
  }
  return { account: a.identity, about: orderAbout(a.identity, a.sequence) };
}

/** What two orders of a publisher contradict each other about. */
export function orderAbout(identity: string, sequence: number): string {
  return `order/${identity}/${sequence}`;
}

/** What two votes for heads by one member of a committee contradict each other about. */
export function headAbout(
  type: typeof PREPARE_TYPE | typeof HEAD_TYPE,
  { committee, view, index }: Pick<PrepareStatement, 'committee' | 'view' | 'index'>,
): string {
  return `head/${committee}/${type === PREPARE_TYPE ? 'prepare' : 'commit'}/${view}/${index}`;
}

/** What two votes of one validator in one committee contradict each other about; undefined when both may be given. */
export function voteAbout(committee: Digest, a: Operation, b: Operation): string | undefined {
  if (canonicalJson(a) === canonicalJson(b)) return undefined;
  if (a.identity === b.identity && a.sequence === b.sequence) return `vote/${committee}/${a.identity}/${a.sequence}`;
  const isOneVersion = a.kind === 'publish' && b.kind === 'publish' && KEYS.version(a.ref) === KEYS.version(b.ref);
  return isOneVersion && a.subject !== b.subject ? `vote/${committee}/${KEYS.version(a.ref)}` : undefined;
}

function byValidator(
  place: Place,
  { committee, type, first, second }: Extract<Conflict, { kind: 'words' }>,
): { readonly account: string; readonly about: string } {
  const seat = place.committeeOf(committee)?.validators.find(({ key }) => key === first.attestation.validator);
  if (seat === undefined || second.attestation.validator !== seat.key) {
    refuse('entry-invalid', 'The two statements are not of one validator of a committee of this network.');
  }
  const about = contradiction(place, committee, type, first, second);
  if (about === undefined) refuse('entry-invalid', 'The two statements do not contradict each other.');
  const keys = publicKeysOf(seat);
  const isSigned = ({ statement, attestation }: Word) =>
    attestationHolds(attestation, type, statement, keys, place.check);
  if (![first, second].every(isSigned)) refuse('entry-invalid', 'The signature of a statement does not hold.');
  return { account: seat.account, about: `${seat.key}/${about}` };
}

/** What the two say different things about; undefined when both may be said. */
function contradiction(place: Place, committee: Digest, type: string, first: Word, second: Word): string | undefined {
  const both = <T extends { networkId: Digest; committee: Digest }>(schema: z.ZodType<T>) =>
    [first, second].map(({ statement }) => {
      const parsed = schema.safeParse(statement);
      if (!parsed.success) refuse('entry-invalid', 'A statement is malformed.');
      if (parsed.data.networkId !== place.terms.networkId) refuse('network-mismatch', 'It is about another network.');
      if (parsed.data.committee !== committee) refuse('entry-invalid', 'A statement is of another committee.');
      return parsed.data;
    }) as [T, T];
  switch (type) {
    case VOTE_TYPE: {
      const [{ operation: a }, { operation: b }] = both(vote);
      return voteAbout(committee, a, b);
    }
    case PREPARE_TYPE:
    case HEAD_TYPE: {
      const [a, b] = both(logHead);
      const isOnePlace = a.view === b.view && a.index === b.index;
      return isOnePlace && a.head !== b.head ? headAbout(type, a) : undefined;
    }
    default:
      return refuse('entry-invalid', 'Statements of that type cannot contradict each other.');
  }
}
