/**
 * What the order of a network says about two operations that conflict: the rules of `src/subsystems/nkrypt/ledger/committees.ts` as a value that each entry makes another
 * one, small enough to be explored. `ordered.test.ts` takes everything that can be in an order through both.
 */

/** The two operations as bits, so that sets of them are numbers; both of them under one key are neither. */
export const A = 1;
export const B = 2;
export const BOTH = A | B;
export const OPERATIONS = [A, B] as const;
export const nameOf = (operation: number) => (operation === A ? 'A' : 'B');

/** Why the two conflict: one number stands for both, or one version has two contents. */
export type Clash = 'number' | 'version';

export type OrderedMistake =
  | 'an epoch opens with fewer than a quorum of handovers'
  | 'who has no seat hands over'
  | 'of two operations the first one counts'
  | 'what a certificate settled is named again'
  | 'what is closed is named again'
  | 'a certificate in the order closes nothing'
  | 'what was handed over binds one epoch only';

export interface OrderedRules {
  readonly clash: Clash;
  readonly quorum: number;
  /** Who sits in each epoch, as bits. */
  readonly seats: readonly number[];
  /** One of {@link OrderedMistake}; others are not about the order. */
  readonly mistake?: string | undefined;
}

export type OrderedEntry =
  | { readonly kind: 'end' }
  | { readonly kind: 'certified'; readonly operation: number }
  | { readonly kind: 'handover'; readonly by: number; readonly named: number };

interface Under {
  /** What the number stands for since it was handed over (0: it was not), and at the end of which epoch that was. */
  readonly handed: number;
  readonly handedIn: number;
  /** What is certified under it and was recorded in this epoch. */
  readonly settled: number;
}

export interface Ordered {
  readonly epoch: number;
  readonly isEnding: boolean;
  /** Who has handed over since, as bits. */
  readonly handedOver: number;
  readonly numbers: readonly Under[];
  /** The highest number that is closed, and the highest one that was recorded as certified. */
  readonly closed: number;
  readonly reached: number;
  readonly versions: readonly { readonly subject: number; readonly isCertified: boolean }[];
}

const NOTHING: Under = { handed: 0, handedIn: 0, settled: 0 };

export function founded(): Ordered {
  const version = { subject: 0, isCertified: false };
  return {
    ...{ epoch: 0, isEnding: false, handedOver: 0, closed: 0, reached: 0 },
    ...{ numbers: [NOTHING, NOTHING], versions: [version, version] },
  };
}

/** Counted from 1, as numbers are. */
export function numberOf(clash: Clash, operation: number): number {
  return clash === 'version' && operation === B ? 2 : 1;
}

export function versionOf(clash: Clash, operation: number): number {
  return clash === 'number' && operation === B ? 1 : 0;
}

/** The same value when the entry is refused. */
export function applied(rules: OrderedRules, order: Ordered, entry: OrderedEntry): Ordered {
  switch (entry.kind) {
    case 'end':
      return { ...order, isEnding: true };
    case 'certified':
      return record(rules, order, entry.operation);
    case 'handover':
      return handOver(rules, order, entry.by, entry.named);
  }
}

function record({ clash }: OrderedRules, order: Ordered, operation: number): Ordered {
  const number = numberOf(clash, operation);
  const version = versionOf(clash, operation);
  const { subject, isCertified } = order.versions[version]!;
  if (isCertified && subject !== operation) return order;
  const before = order.numbers[number - 1]!;
  const isOpen = number > order.closed || before.handed !== 0;
  const under = { ...NOTHING, settled: isOpen ? operation : before.settled };
  return {
    ...order,
    numbers: order.numbers.with(number - 1, under),
    reached: Math.max(order.reached, number),
    versions: order.versions.with(version, { subject: operation, isCertified: true }),
  };
}

function handOver(rules: OrderedRules, order: Ordered, by: number, named: number): Ordered {
  const { quorum, seats, mistake } = rules;
  const mayHandOver = mistake === 'who has no seat hands over' || (seats[order.epoch]! & by) !== 0;
  if (!order.isEnding || !mayHandOver || (order.handedOver & by) !== 0) return order;
  let next: Ordered = { ...order, handedOver: order.handedOver | by };
  for (const operation of OPERATIONS) if ((named & operation) !== 0) next = name(rules, next, operation);
  const needed = mistake === 'an epoch opens with fewer than a quorum of handovers' ? quorum - 1 : quorum;
  return bits(next.handedOver) < needed ? next : open(rules, next);
}

/** Passed over is what no honest validator can have voted for in the epoch. */
function name({ clash, mistake }: OrderedRules, order: Ordered, operation: number): Ordered {
  const number = numberOf(clash, operation);
  const { handed, handedIn, settled } = order.numbers[number - 1]!;
  if (settled !== 0 && mistake !== 'what a certificate settled is named again') return order;
  if (handed === 0 && number <= order.closed && mistake !== 'what is closed is named again') return order;
  if (handed !== 0 && handedIn < order.epoch && handed !== operation) return order;
  const both = mistake === 'of two operations the first one counts' ? handed : handed | operation;
  const under = { handed: handed === 0 ? operation : both, handedIn: order.epoch, settled };
  const version = versionOf(clash, operation);
  const { subject, isCertified } = order.versions[version]!;
  const isFirst = mistake === 'of two operations the first one counts' && subject !== 0;
  const bound = { subject: isFirst ? subject : subject | operation, isCertified: false };
  return {
    ...order,
    numbers: order.numbers.with(number - 1, under),
    versions: isCertified ? order.versions : order.versions.with(version, bound),
  };
}

function open({ mistake }: OrderedRules, order: Ordered): Ordered {
  let closed = order.closed;
  const isForgotten = mistake === 'what was handed over binds one epoch only';
  const numbers = order.numbers.map((under, at) => {
    if (under.handed === 0 || under.handedIn === order.epoch) return { ...under, settled: 0 };
    // Neither certified nor handed over again.
    if (!isForgotten) closed = Math.max(closed, at + 1);
    return NOTHING;
  });
  const { reached, versions } = order;
  return {
    ...{ epoch: order.epoch + 1, isEnding: false, handedOver: 0, numbers, reached },
    closed: mistake === 'a certificate in the order closes nothing' ? closed : Math.max(closed, reached),
    versions: isForgotten
      ? versions.map((one) =>
          one.isCertified ? one : { ...one, subject: numbers.reduce((sum, { handed }) => sum | handed, 0) },
        )
      : versions,
  };
}

/** Whether the order has nothing against a vote for the operation in the present epoch. */
export function isVotable({ clash }: OrderedRules, order: Ordered, operation: number): boolean {
  const number = numberOf(clash, operation);
  const { handed, settled } = order.numbers[number - 1]!;
  if (handed === 0 ? number <= order.closed && settled === 0 : handed !== operation) return false;
  const { subject } = order.versions[versionOf(clash, operation)]!;
  return (settled === 0 || settled === operation) && (subject === 0 || subject === operation);
}

/** Whether the operation need not be handed over. */
export function isRecorded({ clash }: OrderedRules, order: Ordered, operation: number): boolean {
  const number = numberOf(clash, operation);
  const { handed, settled } = order.numbers[number - 1]!;
  if (settled !== 0) return settled === operation;
  const { subject, isCertified } = order.versions[versionOf(clash, operation)]!;
  return number <= order.closed && handed === 0 && isCertified && subject === operation;
}

/** What is named, by a handover or a certificate. */
export function namedIn({ numbers, versions }: Ordered): number {
  const all = [
    ...numbers.flatMap(({ handed, settled }) => [handed, settled]),
    ...versions.map(({ subject }) => subject),
  ];
  return all.reduce((sum, one) => sum | one, 0);
}

function bits(set: number): number {
  let count = 0;
  for (let left = set; left !== 0; left &= left - 1) count += 1;
  return count;
}
