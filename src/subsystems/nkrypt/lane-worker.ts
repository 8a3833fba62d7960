/** The worker's side of a lane. */
import { parentPort } from 'node:worker_threads';
import { yieldPriority } from '../../base/yield-priority.ts';
import type { LaneJob, LaneNews } from './lane.ts';

/** Answers each job with what `work` returns. `stopped` is cheap: ask between batches. */
export function serveLane<J, R>(
  work: (job: J, stopped: () => boolean, progress: (done: number) => void) => R | undefined | Promise<R | undefined>,
): void {
  yieldPriority();
  const tell = (news: LaneNews<R>) => parentPort?.postMessage(news);
  const answer = async ({ job, stop }: LaneJob<J>) => {
    try {
      const result = await work(
        job,
        () => Atomics.load(stop, 0) !== 0,
        (done) => tell({ kind: 'progress', done }),
      );
      tell({ kind: 'result', result });
    } catch (error) {
      tell({ kind: 'failed', message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  };
  parentPort?.on('message', (job: LaneJob<J>) => void answer(job));
}
