import { availableParallelism } from 'node:os';
import { base64 } from '../../base/bytes.ts';
import { type CallOptions, orCancelled } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { siblingModule } from '../../base/module.ts';
import type { StakeAccount } from '../../capabilities/consensus.ts';
import {
  AUDITS,
  beaconOf,
  type Challenge,
  type ProofSet,
  type Requirements,
  type SignedReceipt,
  type SpaceProof,
  type StakeProof,
  type TimeProof,
  type WorkProof,
} from '../../wire/proof.ts';
import { hexDigitsOf } from './anchor.ts';
import { Lane, stopFlag } from './lane.ts';
import type { Opening } from './merkle.ts';
import { auditPositions } from './registration.ts';
import type { SpaceCommitment } from './space.ts';
import { LABEL_BYTES } from './space-graph.ts';
import type { TimeJob } from './time-worker.ts';
import { workProof, workThreads } from './work.ts';
import type { WorkJob } from './work-worker.ts';

/** What a prover asks of the committee while it works. */
export interface Witness {
  /** What the validators of the anchor reveal for an audit, in their order. The clock runs from now. */
  beginAudit(challenge: Challenge, attempt: number): Promise<readonly string[]>;
  finishAudit(challenge: Challenge, answer: AuditAnswer, opening: Opening): Promise<readonly SignedReceipt[]>;
  certifyStake(challenge: Challenge): Promise<StakeProof>;
}

export interface AuditAnswer {
  readonly root: string;
  readonly attempt: number;
  readonly revealed: readonly string[];
  readonly beacon: string;
}

/** Makes proofs. Searching and squaring happen in worker threads; opening labels reads a few blocks of a file. */
export class Prover implements AsyncDisposable {
  readonly #work: readonly Lane<WorkJob, bigint>[];
  readonly #time: Lane<TimeJob, TimeProof>;

  constructor(options: { readonly threads?: number } = {}) {
    const work = siblingModule(import.meta.url, './work-worker');
    const threads = options.threads ?? workThreads(availableParallelism());
    this.#work = Array.from({ length: threads }, () => new Lane(work));
    this.#time = new Lane(siblingModule(import.meta.url, './time-worker'));
  }

  /** All proofs at once, each in its own threads. When one fails or the caller gives up, the others stop. */
  async prove(
    challenge: Challenge,
    lent: {
      readonly witness: Witness;
      readonly space: SpaceCommitment;
      readonly account: StakeAccount;
      readonly spaceBytes: number;
    },
    { signal, onProgress }: CallOptions = {},
  ): Promise<ProofSet> {
    const { requirements } = challenge;
    const needed = requirements.stake?.amountMin ?? 0;
    if (lent.account.locked < needed) {
      throw new HyperMeshError(
        'stake-insufficient',
        `${needed} locked tokens are needed for ${challenge.operation.kind}; the account has ${lent.account.locked} locked of ${lent.account.balance}.`,
        { hint: `hypermesh stake lock ${needed - lent.account.locked}` },
      );
    }
    const failed = new AbortController();
    const either = AbortSignal.any([failed.signal, ...(signal === undefined ? [] : [signal])]);
    const call: CallOptions = { signal: either, onProgress };
    const unasked = Promise.resolve(null);
    const parts = [
      requirements.space === null ? unasked : this.#space(challenge, lent, call),
      requirements.stake === null ? unasked : this.#stake(challenge, lent.witness, call),
      requirements.work === null ? unasked : this.#search(challenge.context, hexDigitsOf(challenge), call),
      requirements.time === null ? unasked : this.#square(challenge.context, requirements.time.squarings, call),
    ] as const;
    try {
      const [space, stake, work, time] = await Promise.all(parts);
      return { formatVersion: 4, challenge, space, stake, work, time };
    } catch (error) {
      failed.abort();
      await Promise.allSettled(parts);
      throw signal?.aborted === true ? cancelled() : error;
    }
  }

  /** The parts of a proof that take effort and nothing else, bound to any context. Errors: `cancelled`. */
  async effort(
    context: Digest,
    { work, time }: Pick<Requirements, 'work' | 'time'>,
    call: CallOptions = {},
  ): Promise<{ readonly work: WorkProof | null; readonly time: TimeProof | null }> {
    const [found, done] = await Promise.all([
      work === null ? null : this.#search(context, work.hexDigits, call),
      time === null ? null : this.#square(context, time.squarings, call),
    ]);
    return { work: found, time: done };
  }

  async #stake(challenge: Challenge, witness: Witness, { signal, onProgress }: CallOptions): Promise<StakeProof> {
    const proof = await orCancelled(witness.certifyStake(challenge), signal);
    onProgress?.({ step: 'stake', done: 1, total: 1, unit: 'steps', note: 'locked tokens certified by the committee' });
    return proof;
  }

  async #space(
    challenge: Challenge,
    {
      witness,
      space,
      spaceBytes,
    }: { readonly witness: Witness; readonly space: SpaceCommitment; readonly spaceBytes: number },
    call: CallOptions,
  ): Promise<SpaceProof> {
    // An audit that came too late on a busy machine is worth another one.
    for (let attempt = 1, tries = 1; ; tries++) {
      if (space.status().state !== 'ready') {
        throw new HyperMeshError('anchor-lost', 'The space commitment of this home has to be made again first.', {
          hint: 'Run the command again; it begins with a new anchor.',
        });
      }
      const root = await space.ready(call);
      if (call.signal?.aborted === true) throw cancelled();
      try {
        const revealed = await witness.beginAudit(challenge, attempt);
        attempt += 1;
        const beacon = beaconOf(revealed);
        const openings = challenge.requirements.space!.openings;
        const n = spaceBytes / LABEL_BYTES;
        const opening = await space.open(auditPositions(beacon, challenge.context, root, n, openings));
        const answer = { root, attempt: attempt - 1, revealed, beacon };
        const receipts = await witness.finishAudit(challenge, answer, opening);
        call.onProgress?.({
          step: 'space',
          done: openings,
          total: openings,
          unit: 'steps',
          note: 'labels opened for the committee',
        });
        const [labels, path] = [base64(opening.labels), base64(opening.path)];
        return { root, attempt: answer.attempt, revealed, labels, path, receipts };
      } catch (error) {
        if (tries >= AUDITS || !isCoded(error, 'space-unavailable', 'proof-expired')) throw error;
      }
    }
  }

  async #search(context: Digest, hexDigits: number, { signal, onProgress }: CallOptions): Promise<WorkProof> {
    const stop = stopFlag();
    const shares = this.#work.length;
    const tried = Array<number>(shares).fill(0);
    const tell = (done: number, total: number) =>
      onProgress?.({ step: 'work', done, total, unit: 'steps', note: 'searching a nonce' });
    // That many are tried on average; a search that takes more is not done.
    const expected = 16 ** hexDigits;
    const report = (share: number, done: number) => {
      tried[share] = done;
      const sum = tried.reduce((a, b) => a + b, 0);
      tell(sum, Math.max(sum + 1, expected));
    };
    tell(0, expected);
    return withStop(stop, signal, async () => {
      const found = await Promise.all(
        this.#work.map(async (lane, share) => {
          const job: WorkJob = { context, hexDigits, share, shares };
          const nonce = await lane.run(job, stop, (done) => report(share, done));
          // The first solution ends the search of the others.
          Atomics.store(stop, 0, 1);
          return nonce;
        }),
      );
      const nonce = found.find((value) => value !== undefined);
      if (nonce === undefined) throw cancelled();
      tell(1, 1);
      return workProof(nonce);
    });
  }

  async #square(context: Digest, squarings: number, { signal, onProgress }: CallOptions): Promise<TimeProof> {
    const stop = stopFlag();
    return withStop(stop, signal, async () => {
      const tell = (done: number) =>
        onProgress?.({ step: 'time', done, total: squarings, unit: 'steps', note: 'squaring, one after the other' });
      const proof = await this.#time.run({ context, squarings }, stop, tell);
      if (proof === undefined) throw cancelled();
      tell(squarings);
      return proof;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#time, ...this.#work].map((lane) => lane[Symbol.asyncDispose]()));
  }
}

/** Raises the flag when the signal does. The work ends at its next look at the flag. */
async function withStop<T>(
  stop: Int32Array<SharedArrayBuffer>,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
): Promise<T> {
  const raise = () => void Atomics.store(stop, 0, 1);
  if (signal?.aborted === true) raise();
  signal?.addEventListener('abort', raise, { once: true });
  try {
    return await work();
  } finally {
    signal?.removeEventListener('abort', raise);
  }
}

function cancelled(): HyperMeshError {
  return new HyperMeshError('cancelled', 'The proofs were not finished: the operation was cancelled.');
}
