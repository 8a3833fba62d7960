import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import { siblingModule } from '../../base/module.ts';
import type { TimeProof } from '../../wire/proof.ts';
import { Lane, stopFlag } from './lane.ts';
import { checkTime } from './time.ts';
import type { TimeJob } from './time-worker.ts';

const context = digestOf(Uint8Array.of(1));
const module = siblingModule(import.meta.url, './time-worker');
const short: TimeJob = { context, squarings: 2 ** 11 };
const endless: TimeJob = { context, squarings: 2 ** 28 };

test('a lane does jobs one after the other, stops one when asked, and starts again after it was idle', async () => {
  await using lane = new Lane<TimeJob, TimeProof>(module, { idleMs: 1 });
  const stop = stopFlag();
  const progress: number[] = [];
  const stopped = lane.run(endless, stop, (done) => {
    progress.push(done);
    Atomics.store(stop, 0, 1);
  });
  const next = lane.run(short, stopFlag());
  assert.equal(await stopped, undefined);
  assert.equal(checkTime(context, short.squarings, (await next)!), undefined);
  assert.ok(progress.length > 0);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(checkTime(context, short.squarings, (await lane.run(short, stopFlag()))!), undefined);
});

test('a lane refuses more jobs than may wait, and ends those it has when it closes', async () => {
  const lane = new Lane<TimeJob, TimeProof>(module, { waitingMax: 2 });
  const ended = Promise.all(
    [1, 2].map(() => assert.rejects(lane.run(endless, stopFlag()), (error) => isCoded(error, 'cancelled'))),
  );
  await assert.rejects(lane.run(short, stopFlag()), (error) => isCoded(error, 'quota-exceeded'));
  await lane[Symbol.asyncDispose]();
  await ended;
});

test('a lane that is closed just as its job stops keeps the process until its thread has ended', async (t) => {
  const script = `
    import { Lane, stopFlag } from ${JSON.stringify(new URL('./lane.ts', import.meta.url).href)};
    for (let ms = 0; ms < 8; ms += 2) {
      const lane = new Lane(new URL(${JSON.stringify(module.href)}));
      const stop = stopFlag();
      const { promise, resolve } = Promise.withResolvers();
      const stopped = lane.run(${JSON.stringify(endless)}, stop, resolve);
      await promise;
      Atomics.store(stop, 0, 1);
      // The answer is there before the loop looks, or is not.
      for (const until = performance.now() + ms; performance.now() < until; );
      await lane[Symbol.asyncDispose]();
      await stopped.catch(() => undefined);
    }
    process.stdout.write('ended\\n');`;
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-lane-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const file = path.join(folder, 'close.mjs');
  await writeFile(file, script);
  const { stdout, status, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
  assert.deepEqual([status, stdout], [0, 'ended\n'], stderr);
});

test('a job that fails says so, and the lane goes on', async () => {
  await using lane = new Lane<TimeJob, TimeProof>(module);
  await assert.rejects(lane.run({ context: 7 as never, squarings: 2 ** 11 }, stopFlag()));
  assert.ok(await lane.run(short, stopFlag()));
});
