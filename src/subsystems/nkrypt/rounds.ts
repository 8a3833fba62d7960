import type { Clock } from '../../base/clock.ts';
import { isCoded } from '../../base/errors.ts';
import { laterTurn } from '../../base/turn.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { ENTRY_LIMITS, encodeEntry } from '../../wire/entry.ts';
import { admittedAtMs, type Endorsement, type Operation } from '../../wire/proof.ts';
import { cut } from './cut.ts';
import type { Membership } from './entering.ts';
import { leavesOpen } from './own-account.ts';
import { type LossLent, lossEntry } from './space-loss.ts';

/** How often a validator looks whether an audit is due, and what has to be brought into the order. */
const ROUND_MS = 10_000;
/** Certificates that a validator brings into the order in one round. */
const SETTLED_AT_ONCE_MAX = 1_024;

export interface RoundsLent {
  readonly trust: Pick<Trust, 'attest' | 'attested' | 'validatorKeys'>;
  readonly clock: Clock;
  member(): Membership;
  /** How other nodes are asked; undefined until they can be. */
  watching(): Omit<LossLent, 'trust'> | undefined;
}

/** What a validator does again and again, each in a turn of its own. What fails is looked at again in the next round. */
export class Rounds implements Disposable {
  readonly #lent: RoundsLent;
  readonly #roundMs: number;
  readonly #timer: NodeJS.Timeout;
  readonly #running = new Set<() => Promise<void>>();
  #isClosed = false;
  /** The committee, and the commitment that all of its validators know. */
  #introducedTo: string | undefined;

  constructor(lent: RoundsLent, { roundMs = ROUND_MS }: { readonly roundMs?: number | undefined }) {
    this.#lent = lent;
    this.#roundMs = roundMs;
    const all = [() => this.#audit(), () => this.#accuse(), () => this.#settle(), () => this.#introduce()];
    this.#timer = setInterval(() => {
      for (const work of all) this.#once(work).catch(() => undefined);
    }, roundMs);
    this.#timer.unref();
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    clearInterval(this.#timer);
  }

  /** A commitment failed here again and again: when a quorum saw the same, the order is told, and its registration ends. */
  async lost(identity: string, root: string): Promise<void> {
    const { committee, networkId, seat } = this.#member;
    const watching = this.#lent.watching();
    if (watching === undefined || seat === null) return;
    const { key: self } = await this.#lent.trust.validatorKeys();
    const entry = await lossEntry(
      { ...watching, trust: this.#lent.trust },
      { networkId, committee, self },
      identity,
      root,
    );
    if (entry === undefined) return;
    try {
      // Commit point is the order's. A crash between the two audits, and says, the same again.
      await this.#member.order?.submit(entry);
    } catch (error) {
      // Another validator was first.
      if (!isCoded(error, 'proof-replayed')) throw error;
    }
    seat.committee.registry(identity).forget();
  }

  async #audit(): Promise<void> {
    if (this.#lent.watching() !== undefined) await this.#member.audits?.round();
  }

  /** Once for each epoch: who got a seat in it has to know the commitment of this home. */
  async #introduce(): Promise<void> {
    const { committee, network, space } = this.#member;
    const { digest, validators } = committee;
    const { root } = space;
    if (validators.length === 1 || root === undefined || this.#introducedTo === `${digest} ${root}`) return;
    if (await network.introduce(root)) this.#introducedTo = `${digest} ${root}`;
  }

  /**
   * What was certified goes into the order, so that a handover carries only what is unfinished. Another validator is first for each certificate; the others step in, one
   * after the other, when the order does not have it.
   */
  async #settle(): Promise<void> {
    const { seat, order, ledger, networkId, votes, committee } = this.#member;
    if (seat === null || order === undefined) return;
    const { validators } = committee;
    const own = validators.findIndex(({ key }) => key === seat.validator);
    const due: Endorsement[] = [];
    for (let page = votes.unsettled(); page.length > 0 && due.length < SETTLED_AT_ONCE_MAX && !this.#isClosed; ) {
      const settled: Operation[] = [];
      for (const certificate of page) {
        const { operation, proofs } = certificate;
        const turn = (own + Number.parseInt(proofs.slice(-8), 16)) % validators.length;
        if (ledger.isRecorded(operation)) settled.push(operation);
        else if (this.#lent.clock.nowMs() - admittedAtMs(certificate) >= turn * this.#roundMs) due.push(certificate);
      }
      votes.settled(settled);
      await laterTurn();
      page = this.#isClosed ? [] : votes.unsettled(page.at(-1)!.operation);
    }
    const submit = (certificates: readonly Endorsement[]) =>
      order.submit(encodeEntry({ formatVersion: 1, networkId, kind: 'certified', certificates }));
    for (const part of cut(due, ENTRY_LIMITS.certificatesMax)) {
      await submit(part).catch(async (error: unknown) => {
        if (leavesOpen(error)) throw error;
        // One of them spoils it: each for itself, and what is refused has nothing to say.
        for (const one of part) await submit([one]).catch(rethrowUnlessRefused);
      });
      votes.settled(part.map(({ operation }) => operation));
    }
  }

  /** Who signed two things that contradict each other answers for it with his stake: the order of the network gets both. */
  async #accuse(): Promise<void> {
    const { seat, office, ledger, networkId, votes } = this.#member;
    for (const { about, conflict } of votes.witness.open()) {
      try {
        // Another one may have been first.
        if (seat === null || !ledger.isAnswered(about))
          await office.submit(encodeEntry({ formatVersion: 1, networkId, kind: 'evidence', conflict }));
      } catch (error) {
        if (leavesOpen(error)) throw error;
      }
      votes.witness.answered(about);
    }
  }

  /** What takes longer than a round is not begun again meanwhile: the order would get the same from this home again and again. */
  async #once(work: () => Promise<void>): Promise<void> {
    if (this.#running.has(work)) return;
    this.#running.add(work);
    try {
      await laterTurn();
      if (!this.#isClosed) await work();
    } finally {
      this.#running.delete(work);
    }
  }

  get #member(): Membership {
    return this.#lent.member();
  }
}

function rethrowUnlessRefused(error: unknown): void {
  if (leavesOpen(error)) throw error;
}
