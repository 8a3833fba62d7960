/** Judges proofs by themselves: from the proof set, the genesis document and the trust anchor alone. */
import { fromBase64, hex } from '../../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../../base/digest.ts';
import { laterTurn } from '../../base/turn.ts';
import type { ProofVerdict } from '../../capabilities/consensus.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { Genesis } from '../../wire/genesis.ts';
import {
  beaconOf,
  type Challenge,
  proofSetShell,
  type Requirements,
  SHARE_TYPE,
  SPACE_RECEIPT_TYPE,
  type SpaceProof,
  type SpaceReceipt,
  STAKE_STATEMENT_TYPE,
  type StakeProof,
  type StakeStatement,
  spaceProof,
  stakeProof,
  type TimeProof,
  timeProof,
  type WorkProof,
  workProof,
} from '../../wire/proof.ts';
import { firstIssue, type TrustAnchor } from '../../wire/signature.ts';
import { hexDigitsOf, isRevealed, objectionToChallenge, shareStatement } from './anchor.ts';
import { checkWords } from './attest.ts';
import type { Law } from './epoch-law.ts';
import { rootOf } from './merkle.ts';
import { auditPositions } from './registration.ts';
import { LABEL_BYTES } from './space-graph.ts';
import { checkTime } from './time.ts';
import { checkWork } from './work.ts';

/** The law and the moment by which proofs are judged. */
export interface Court extends Pick<Law, 'genesis' | 'networkId' | 'committee'> {
  readonly trust: Pick<Trust, 'attested'>;
  readonly atMs: number;
}

export type ProofKind = ProofVerdict['kind'];

/** Cheapest first: what is refused early costs little. */
export const COST_ORDER = ['work', 'stake', 'space', 'time'] as const satisfies readonly ProofKind[];

/** Verdicts in the order space, stake, work, time. Never throws for bad input. */
export async function judge(proofs: unknown, court: Court): Promise<readonly ProofVerdict[]> {
  const verdicts: ProofVerdict[] = [];
  for await (const verdict of judgeInTurn(proofs, court)) verdicts.push(verdict);
  return reported(verdicts);
}

/** The order in which verdicts are reported. */
export function reported(verdicts: readonly ProofVerdict[]): readonly ProofVerdict[] {
  return (['space', 'stake', 'work', 'time'] as const).map((kind) => verdicts.find((found) => found.kind === kind)!);
}

/** Verdicts from the cheapest to the dearest: who stops at the first bad one pays for no more. Never throws for bad input. */
export async function* judgeInTurn(proofs: unknown, court: Court): AsyncGenerator<ProofVerdict> {
  const shell = proofSetShell.safeParse(proofs);
  const objection = shell.success
    ? await checkChallenge(shell.data.challenge, court)
    : `The proof set is malformed: ${firstIssue(shell.error)}.`;
  for (const kind of COST_ORDER) {
    // Each takes some milliseconds. Proofs, law and moment are those that were given: nothing changes meanwhile.
    if (objection === undefined) await laterTurn();
    yield shell.success && objection === undefined
      ? await judgeOne(kind, shell.data.challenge, shell.data[kind], court)
      : { kind, verdict: 'invalid', says: objection!, verifyMs: 0 };
  }
}

/** One proof of a challenge that belongs here. */
async function judgeOne(kind: ProofKind, challenge: Challenge, body: unknown, court: Court): Promise<ProofVerdict> {
  const from = performance.now();
  const verdict = (verdict: ProofVerdict['verdict'], says: string): ProofVerdict => ({
    kind,
    verdict,
    says: says.slice(0, 500),
    verifyMs: performance.now() - from,
  });
  try {
    if (challenge.requirements[kind] === null) {
      return body === null
        ? verdict('not-required', 'The network does not ask for it.')
        : verdict('invalid', 'It was not asked for.');
    }
    return verdict('valid', await check(kind, challenge, body, court));
  } catch (error) {
    return verdict('invalid', `${(error as Error).message}`);
  }
}

/** A sentence that says what of a challenge does not hold: it has to be what a quorum of the committee gave shares for. */
export async function checkChallenge(challenge: Challenge, court: Court): Promise<string | undefined> {
  try {
    const objection = objectionToChallenge(challenge, court);
    if (objection !== undefined) return objection;
    const about = { ...challenge, previous: challenge.anchor.previous };
    const words = challenge.anchor.shares.map(({ attestation, ...own }) => ({
      attestation,
      statement: shareStatement(about, own),
    }));
    await checkWords(words, { ...lawOf(court), payloadType: SHARE_TYPE });
    return undefined;
  } catch (error) {
    return `The anchor does not hold: ${(error as Error).message.slice(0, 450)}.`;
  }
}

/** Throws an Error when the anchor is not the root certificate that the genesis names. */
export function checkRoot(genesis: Genesis, anchor: TrustAnchor): void {
  if (hex(sha256(fromBase64(anchor.root))) !== genesis.root)
    throw new Error('The anchor is not the root of this network');
}

function check(kind: ProofKind, challenge: Challenge, body: unknown, court: Court): Promise<string> | string {
  const { requirements } = challenge;
  switch (kind) {
    case 'work':
      return workHolds(challenge, body);
    case 'stake':
      return stakeHolds(challenge, requirements.stake!, body, court);
    case 'space':
      return spaceHolds(challenge, requirements.space!, body, court);
    case 'time':
      return timeHolds(challenge, requirements.time!, body, court);
  }
}

function workHolds(challenge: Challenge, body: unknown): string {
  const proof = parsed<WorkProof>(workProof, body);
  const hexDigits = hexDigitsOf(challenge);
  refuse(checkWork(challenge.context, hexDigits, proof));
  return `About ${figure(16 ** hexDigits)} hashes were tried for this operation.`;
}

async function stakeHolds(
  challenge: Challenge,
  asked: NonNullable<Requirements['stake']>,
  body: unknown,
  court: Court,
): Promise<string> {
  const { statements } = parsed<StakeProof>(stakeProof, body);
  let least = Number.POSITIVE_INFINITY;
  for (const { balance, locked, issuedAtMs } of statements) {
    const ageMs = court.atMs - issuedAtMs;
    if (ageMs > court.genesis.stake.ageMsMax || ageMs < -skewMs(court)) throw new Error('The statement has expired.');
    least = Math.min(least, locked, balance);
  }
  const words = statements.map(({ attestation, ...own }) => ({
    attestation,
    statement: stakeStatement(challenge, own) satisfies StakeStatement,
  }));
  await checkWords(words, { ...lawOf(court), payloadType: STAKE_STATEMENT_TYPE });
  if (least < asked.amountMin) throw new Error(`${asked.amountMin} locked tokens are needed, ${least} are.`);
  return `${figure(least)} tokens of the account are locked, by the committee's ledger.`;
}

async function spaceHolds(
  challenge: Challenge,
  asked: NonNullable<Requirements['space']>,
  body: unknown,
  court: Court,
): Promise<string> {
  const proof = parsed<SpaceProof>(spaceProof, body);
  const { bytes } = court.genesis.space;
  const labels = fromBase64(proof.labels);
  const path = fromBase64(proof.path);
  if (bytes < asked.bytesMin) throw new Error(`${asked.bytesMin} bytes are asked for.`);
  const n = bytes / LABEL_BYTES;
  if (!isRevealed(challenge.anchor.shares, proof.attempt, proof.revealed))
    throw new Error('The beacon is not what the validators of the anchor were committed to.');
  const beacon = beaconOf(proof.revealed);
  const positions = auditPositions(beacon, challenge.context, proof.root, n, asked.openings);
  const root = rootOf(n, positions, { labels, path });
  if (root === undefined || hex(root) !== proof.root) throw new Error('The opened labels do not lead to the root.');
  let slowest = 0;
  for (const { issuedAtMs, arrivedAtMs } of proof.receipts) {
    const tookMs = arrivedAtMs - issuedAtMs;
    if (tookMs < 0 || tookMs > asked.deadlineMs)
      throw new Error(`The answer took ${tookMs} of ${asked.deadlineMs} ms.`);
    if (issuedAtMs < challenge.anchor.issuedAtMs - skewMs(court) || arrivedAtMs > court.atMs + skewMs(court)) {
      throw new Error('The audit was not between the challenge and now.');
    }
    slowest = Math.max(slowest, tookMs);
  }
  const about = { root: proof.root, bytes, beacon, opening: openingDigest({ labels, path }) };
  const words = proof.receipts.map(({ attestation, ...own }) => ({
    attestation,
    statement: spaceReceipt(challenge, about, own) satisfies SpaceReceipt,
  }));
  await checkWords(words, { ...lawOf(court), payloadType: SPACE_RECEIPT_TYPE });
  return `${positions.length} labels of a commitment of ${figure(bytes)} bytes were opened within ${figure(slowest)} ms.`;
}

function timeHolds(
  challenge: Challenge,
  asked: NonNullable<Requirements['time']>,
  body: unknown,
  court: Court,
): string {
  const proof = parsed<TimeProof>(timeProof, body);
  const ageMs = anchorAgeMs(challenge, court.atMs);
  if (ageMs > asked.windowMs) throw new Error(`The anchor was ${ageMs} ms old; the window is ${asked.windowMs} ms.`);
  if (ageMs < -skewMs(court)) throw new Error('The anchor is from the future.');
  refuse(checkTime(challenge.context, asked.squarings, proof));
  return `${figure(asked.squarings)} squarings were done one after the other since the anchor, which was ${figure(Math.max(0, ageMs))} ms old.`;
}

/** What a validator says about the account of a challenge. */
export function stakeStatement(
  { networkId, committee, operation, context }: Challenge,
  own: Pick<StakeStatement, 'balance' | 'locked' | 'issuedAtMs'>,
): StakeStatement {
  return { networkId, committee, account: operation.identity, context, ...own };
}

/** What a validator says about an audit of a challenge. */
export function spaceReceipt(
  { networkId, committee, operation, context }: Challenge,
  about: Pick<SpaceReceipt, 'root' | 'bytes' | 'beacon' | 'opening'>,
  own: Pick<SpaceReceipt, 'issuedAtMs' | 'arrivedAtMs'>,
): SpaceReceipt {
  return { networkId, committee, identity: operation.identity, context, ...about, ...own };
}

function lawOf({ trust, committee }: Court) {
  return { trust, validators: committee.validators };
}

function skewMs({ genesis }: Court): number {
  return genesis.limits.clockSkewMs;
}

export function anchorAgeMs(challenge: Challenge, atMs: number): number {
  return atMs - challenge.anchor.issuedAtMs;
}

export function openingDigest(opening: { readonly labels: Uint8Array; readonly path: Uint8Array }): Digest {
  return digestOf(Buffer.concat([opening.labels, opening.path]));
}

function refuse(why: string | undefined): void {
  if (why !== undefined) throw new Error(`${why[0]!.toUpperCase()}${why.slice(1)}.`);
}

function parsed<T>(
  schema: {
    safeParse(value: unknown): { success: true; data: T } | { success: false; error: Parameters<typeof firstIssue>[0] };
  },
  value: unknown,
): T {
  if (value === null) throw new Error('It is missing.');
  const result = schema.safeParse(value);
  if (!result.success) throw new Error(`It is malformed: ${firstIssue(result.error)}.`);
  return result.data;
}

/** As people read it: 1,048,576. */
function figure(value: number): string {
  // Not by a locale: looking that up takes longer than checking some of the proofs.
  return String(value).replaceAll(/\B(?=(\d{3})+$)/g, ',');
}
