import type { Digest } from '../../../base/digest.ts';
import { type Attestation, attestationHolds, publicKeysOf, type SignatureCheck } from '../../../wire/attestation.ts';
import {
  decodeOrder,
  HANDOVER_TYPE,
  type HandoverStatement,
  keyBytes,
  SEQUENCER_TYPE,
  type SequencerPlace,
  type SequencerStatement,
  SPACE_LOST_TYPE,
  type SpaceLostStatement,
} from '../../../wire/entry.ts';
import {
  type Committee,
  EPOCH_TYPE,
  type EpochDocument,
  epochDigest,
  noSuccessor,
  proposalOf,
  quorumObjection,
  type Seat,
  succeed,
} from '../../../wire/epoch.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import { type Endorsement, type Operation, operationDigest, VOTE_TYPE, voteOf } from '../../../wire/proof.ts';
import { envelopeHolds } from '../../../wire/signature.ts';
import { type AccountFact, accountOf, changeAccount, isKnown, isSuspended, ownerOf, slash } from './accounts.ts';
import type { Draft } from './facts.ts';
import { KEYS, type Place, refuse } from './law.ts';

export type EpochFact = {
  readonly epoch: number;
  readonly digest: Digest;
  /** Digest of the document that follows, once it is in the order: from then on nobody votes in this epoch. */
  readonly next: Digest | null;
  /** Parts that each validator of this epoch has handed over, by key id; all of them when `isWhole`. */
  readonly handed: Readonly<Record<string, { readonly parts: number; readonly isWhole: boolean }>>;
};

export type VersionFact = {
  /** Null: two validators voted for different content when an epoch ended, so that it stands for neither. */
  readonly subject: Digest | null;
  readonly isCertified: boolean;
};

export type HandedFact = {
  /** What the sequence number stands for; null: for nothing, because two different orders were handed over. */
  readonly operation: Digest | null;
  /** The epoch at whose end it was handed over: it may be voted for in the next one. */
  readonly epoch: number;
};

/** With each entry. */
const SETTLED_FORGOTTEN_MAX = 128;

export type SequencerFact = {
  readonly moves: number;
  readonly to: SequencerPlace | null;
  /** After which position the order of that engine begins. */
  readonly origin: number;
  /** Names its order within the engine. */
  readonly name: string;
};

export function presentOf(draft: Pick<Draft, 'get'>): EpochFact {
  return draft.get<EpochFact>(KEYS.epoch)!;
}

/** One validator's statement about the present epoch. Errors: `entry-invalid`, `network-mismatch`. */
export function ofPresent(
  place: Place,
  word: {
    readonly type: string;
    readonly statement: { readonly networkId: Digest; readonly committee: Digest; readonly validator: string };
    readonly attestation: Attestation;
  },
): void {
  const { type, statement, attestation } = word;
  const { validators } = present(place, statement);
  const seat = validators.find(({ key }) => key === statement.validator);
  if (seat === undefined || attestation.validator !== seat.key) {
    refuse('entry-invalid', 'Who says so has no seat in the present committee.');
  }
  if (!attestationHolds(attestation, type, statement, publicKeysOf(seat), place.check)) {
    refuse('entry-invalid', 'The signature of the validator does not hold.');
  }
}

/** A statement of the present committee. Errors: `entry-invalid`, `network-mismatch`. */
function byQuorum(
  place: Place,
  type: string,
  statement: { readonly networkId: Digest; readonly committee: Digest },
  attestations: readonly Attestation[],
): void {
  const committee = present(place, statement);
  const objection = quorumObjection(committee, attestations, { type, statement, check: place.check });
  if (objection !== undefined) refuse('entry-invalid', `It is not the word of the committee: ${objection}.`);
}

function present(place: Place, statement: { readonly networkId: Digest; readonly committee: Digest }) {
  const { epoch, digest } = presentOf(place.draft);
  if (statement.networkId !== place.terms.networkId) refuse('network-mismatch', 'It is about another network.');
  if (statement.committee !== digest)
    refuse('entry-invalid', `It is of another committee than that of epoch ${epoch}.`);
  return place.committeeOf(digest)!;
}

/** From here on the old committee votes for nothing but the order, until a quorum of it has handed over. Errors: `epoch-invalid`. */
export function endEpoch(place: Place, document: EpochDocument): void {
  const { draft, terms, check } = place;
  const now = presentOf(draft);
  if (now.next !== null) refuse('epoch-invalid', `Epoch ${now.epoch} has its successor already.`);
  const before = place.committeeOf(now.digest)!;
  succeed(before, document, terms.networkId);
  const signed = { type: EPOCH_TYPE, statement: proposalOf(document), check };
  const objection = quorumObjection(before, document.approvals, signed);
  if (objection !== undefined) throw noSuccessor(objection);
  const unfit = seatsObjection(draft, document.validators);
  if (unfit !== undefined) refuse('epoch-invalid', unfit);
  draft.set(KEYS.epoch, { ...now, next: epochDigest(document) });
}

/** Why these could not be a committee; undefined when they could. */
export function seatsObjection(draft: Pick<Draft, 'get'>, validators: readonly Seat[]): string | undefined {
  for (const { account } of validators) {
    if (!isKnown(draft, account)) return `No account ${account} answers for its validator.`;
    if (isSuspended(draft, account)) return `The account ${account} contradicted itself in this epoch.`;
  }
  return undefined;
}

/** Whether no later committee can vote for anything else under the number and the version, also when it is not handed over. */
export function isRecorded(draft: Pick<Draft, 'get'>, operation: Operation): boolean {
  const { kind, identity, sequence, ref, subject } = operation;
  const now = presentOf(draft).epoch;
  const settled = draft.get<Digest>(KEYS.settled(now, identity, sequence));
  if (settled !== undefined) return settled === operationDigest(operation);
  const isClosed = sequence <= closedIn(accountOf(draft, identity).sequence, now);
  if (!isClosed || draft.get(KEYS.handed(identity, sequence)) !== undefined) return false;
  const version = kind === 'publish' ? draft.get<VersionFact>(KEYS.version(ref)) : undefined;
  return kind !== 'publish' || (version?.isCertified === true && version.subject === subject);
}

/** What the epoch before left open, and the one that is over now neither certified nor handed over again, stands for nothing from here on. */
function closeHanded(draft: Draft, over: number): void {
  for (const [key, { epoch }] of draft.list<HandedFact>('handed/')) {
    if (epoch >= over) continue;
    const [, identity, padded] = key.split('/') as [string, string, string];
    const { sequence } = accountOf(draft, identity);
    changeAccount(draft, identity, { sequence: { ...sequence, closed: Math.max(sequence.closed, Number(padded)) } });
    draft.delete(key);
  }
}

/** What was certified in epochs that are over is closed with all other numbers of them: some of it is forgotten with each entry. */
export function forgetSettled(draft: Draft): void {
  const { epoch } = presentOf(draft);
  for (const key of draft.first('settled/', SETTLED_FORGOTTEN_MAX)) {
    if (Number(key.split('/')[1]) < epoch) draft.delete(key);
  }
}

/**
 * Names what an order stands for, so that the next committees can vote for nothing else in its place. Passed over is what no honest validator can have voted for
 * in the epoch, so that a dishonest one cannot open again what is closed, or bar names of others.
 */
function name(draft: Draft, epoch: number, operation: Operation): void {
  const { kind, identity, sequence, ref, subject } = operation;
  if (kind === 'publish' && ownerOf(draft, ref.split('@')[0]!) !== identity) return;
  if (draft.get(KEYS.settled(epoch, identity, sequence)) !== undefined) return;
  const digest = operationDigest(operation);
  const key = KEYS.handed(identity, sequence);
  const handed = draft.get<HandedFact>(key);
  if (handed === undefined && sequence <= closedIn(accountOf(draft, identity).sequence, epoch)) return;
  if (handed !== undefined && handed.epoch < epoch && handed.operation !== digest) return;
  const isOne = handed === undefined || handed.operation === digest;
  draft.set(key, { operation: isOne ? digest : null, epoch } satisfies HandedFact);
  if (kind !== 'publish') return;
  const version = draft.get<VersionFact>(KEYS.version(ref));
  if (version?.isCertified === true) return;
  const isSame = version === undefined || version.subject === subject;
  draft.set(KEYS.version(ref), { subject: isSame ? subject : null, isCertified: false });
}

/** Errors: `entry-invalid`, `network-mismatch`, `proof-replayed`. Returns whether the next epoch is open now. */
export function handOver(place: Place, statement: HandoverStatement, attestation: Attestation): boolean {
  const { draft, terms, check } = place;
  const now = presentOf(draft);
  ofPresent(place, { type: HANDOVER_TYPE, statement, attestation });
  if (now.next === null) refuse('entry-invalid', `Epoch ${now.epoch} has not ended.`);
  const { validator, part, isLast } = statement;
  const before = now.handed[validator] ?? { parts: 0, isWhole: false };
  if (before.isWhole || part !== before.parts) {
    refuse('proof-replayed', `Part ${before.parts} of what the validator hands over is next, if there is one.`);
  }
  const orders = statement.orders.map((signed) => {
    const { networkId, operation } = decodeOrder(signed);
    if (networkId !== terms.networkId) refuse('network-mismatch', 'An order is for another network.');
    if (!envelopeHolds(signed.envelope, keyBytes(signed.keys), check)) {
      refuse('entry-invalid', 'The signatures of an order do not hold.');
    }
    return operation;
  });
  for (const operation of orders) name(draft, now.epoch, operation);
  const handed = { ...now.handed, [validator]: { parts: part + 1, isWhole: isLast } };
  const whole = Object.values(handed).filter(({ isWhole }) => isWhole).length;
  const { validators } = place.committeeOf(now.digest)!;
  if (whole < quorumOf(validators.length)) {
    draft.set(KEYS.epoch, { ...now, handed });
    return false;
  }
  closeHanded(draft, now.epoch);
  draft.set(KEYS.epoch, { epoch: now.epoch + 1, digest: now.next, next: null, handed: {} });
  return true;
}

/** What is certified, so that also a later committee knows. Errors: `entry-invalid`, `network-mismatch`, `equivocation`. */
export function recordCertified(
  place: Place,
  certificates: readonly Endorsement[],
  /** Says so only of what was checked here, by the same committee. */
  isGenuine: (certificate: Endorsement) => boolean = () => false,
): void {
  const { draft, terms, check } = place;
  for (const certificate of certificates) {
    const { networkId, committee: named, operation } = certificate;
    if (networkId !== terms.networkId) refuse('network-mismatch', 'A certificate is of another network.');
    const committee = place.committeeOf(named);
    if (committee === undefined || !(isGenuine(certificate) || isCertified(certificate, committee, check))) {
      refuse('entry-invalid', 'A certificate is not the word of its committee.');
    }
    settle(draft, operation);
    if (operation.kind !== 'publish') continue;
    const key = KEYS.version(operation.ref);
    const known = draft.get<VersionFact>(key);
    if (known?.isCertified === true && known.subject !== operation.subject) {
      refuse('equivocation', `${operation.ref} was certified with other content: the committee contradicted itself.`);
    }
    draft.set(key, { subject: operation.subject, isCertified: true });
  }
}

/** Whether distinct members of the committee voted for exactly what the certificate says, a quorum of them. */
function isCertified(certificate: Endorsement, { validators }: Committee, check: SignatureCheck): boolean {
  const { votes } = certificate;
  if (votes.length < quorumOf(validators.length)) return false;
  const left = new Map(validators.map((seat) => [seat.key, seat]));
  return votes.every(({ atMs, attestation }) => {
    const seat = left.get(attestation.validator);
    left.delete(attestation.validator);
    if (seat === undefined) return false;
    return attestationHolds(attestation, VOTE_TYPE, voteOf(certificate, atMs), publicKeysOf(seat), check);
  });
}

/** The number stands for that operation. What was handed over under it is of no more use; with the epoch it is closed as all numbers up to it. */
function settle(draft: Draft, operation: Operation): void {
  const { identity, sequence } = operation;
  const before = accountOf(draft, identity).sequence;
  const { epoch } = presentOf(draft);
  const closed = closedIn(before, epoch);
  const key = KEYS.handed(identity, sequence);
  if (sequence > closed || draft.get(key) !== undefined)
    draft.set(KEYS.settled(epoch, identity, sequence), operationDigest(operation));
  draft.delete(key);
  changeAccount(draft, identity, { sequence: { closed, reached: Math.max(before.reached, sequence), epoch } });
}

function closedIn({ closed, reached, epoch }: AccountFact['sequence'], now: number): number {
  return epoch < now ? Math.max(closed, reached) : closed;
}

/** What the order has against a vote for the operation in the present epoch. Errors: `not-owner`, `version-exists`, `equivocation`, `not-permitted`. */
export function checkOperation(draft: Pick<Draft, 'get'>, operation: Operation): void {
  const { kind, identity, sequence, ref, subject } = operation;
  const handed = draft.get<HandedFact>(KEYS.handed(identity, sequence));
  const { epoch } = presentOf(draft);
  const isClosed = sequence <= closedIn(accountOf(draft, identity).sequence, epoch);
  const digest = operationDigest(operation);
  const settled = draft.get<Digest>(KEYS.settled(epoch, identity, sequence));
  const isBarred = handed === undefined ? isClosed && settled === undefined : handed.operation !== digest;
  if (isBarred || (settled !== undefined && settled !== digest)) {
    refuse(
      'equivocation',
      `Sequence number ${sequence} of this identity is from an epoch that ended, or stands for something else.`,
      'Run the command again; each operation takes a number of its own.',
    );
  }
  if (isSuspended(draft, identity)) {
    refuse(
      'not-permitted',
      'This identity signed two things that contradict each other; it can publish again in the next epoch.',
    );
  }
  if (kind !== 'publish') return;
  const name = ref.split('@')[0]!;
  const owner = ownerOf(draft, name);
  if (owner !== identity) {
    refuse(
      'not-owner',
      owner === undefined ? `Nobody has claimed ${name} yet.` : `${name} belongs to the publisher ${owner}.`,
      owner === undefined ? 'Publishing claims it; run the command again.' : 'Publish under a name of your own.',
    );
  }
  const version = draft.get<VersionFact>(KEYS.version(ref));
  if (version !== undefined && version.subject !== subject) {
    refuse(
      'version-exists',
      `${ref} was published before with other content.`,
      'A version never changes, also when it was deleted: raise `version` in catalog.yaml and publish again.',
    );
  }
}

/** Errors: `entry-invalid`, `network-mismatch`, `proof-replayed`. */
export function loseSpace(place: Place, statement: SpaceLostStatement, attestations: readonly Attestation[]): void {
  const { draft, terms } = place;
  byQuorum(place, SPACE_LOST_TYPE, statement, attestations);
  const key = KEYS.spaceLost(presentOf(draft).epoch, statement.account, statement.root);
  if (draft.get(key) !== undefined)
    refuse('proof-replayed', 'That this commitment is lost was said before in this epoch.');
  draft.set(key, true);
  slash(draft, statement.account, terms.spaceLostPercent);
}

/** Errors: `entry-invalid`, `network-mismatch`, `proof-replayed`. */
export function moveSequencer(place: Place, statement: SequencerStatement, attestations: readonly Attestation[]): void {
  const { draft } = place;
  byQuorum(place, SEQUENCER_TYPE, statement, attestations);
  const { moves } = sequencerOf(draft);
  if (statement.moves !== moves) refuse('proof-replayed', `The network has moved its sequencer ${moves} times.`);
  const { after, to } = statement;
  // So nobody can bring a recovery that was not needed, or did not come about, at another time.
  if (after !== undefined && after.index + 1 !== place.index) {
    refuse('entry-invalid', `It belongs at position ${after.index + 1}.`);
  }
  const now = moves + 1;
  draft.set(KEYS.sequencer, { to, moves: now, origin: place.index, name: `${now}` } satisfies SequencerFact);
}

export function sequencerOf(draft: Pick<Draft, 'get'>): SequencerFact {
  return draft.get<SequencerFact>(KEYS.sequencer) ?? { moves: 0, to: null, origin: 0, name: '0' };
}
