import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { concat } from '../../../base/bytes.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { noise } from '../../../testing/made-content.ts';
import { openContentStore } from './store.ts';

const clock = { nowMs: () => 1_000_000 };

/** Content number `n`: larger ones share their beginning, so that shards are shared too. */
function content(n: number): Uint8Array {
  return concat(noise(n % 3 === 0 ? 200_000 : 0, 'shared'), noise(1 + ((n * 7_919) % 60_000), `own ${n}`));
}

/** Started as a process of its own: puts content after content and names each once it is stored; removes some again. */
async function churn(directory: string, from: number): Promise<never> {
  const store = await openContentStore({ directory, clock });
  for (let n = from; ; n++) {
    const bytes = content(n);
    const { digest } = await store.put(
      (async function* () {
        yield bytes.subarray(0, 1_000);
        yield bytes.subarray(1_000);
      })(),
    );
    process.stdout.write(`put ${digest}\n`);
    if (n % 5 !== 0) continue;
    process.stdout.write(`delete ${digest}\n`);
    await store.delete(digest);
  }
}

if (process.argv[2] === 'churn') {
  await churn(process.argv[3]!, Number(process.argv[4]));
} else {
  test('a store that is killed at any moment opens again with all that was acknowledged', async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'hm-crash-'));
    t.after(() => rm(directory, { recursive: true, force: true }));
    const acknowledged = new Set<Digest>();
    const maybe = new Set<Digest>();
    for (let round = 0; round < 8; round++) {
      const child: ChildProcess = spawn(
        process.execPath,
        [import.meta.filename, 'churn', directory, String(round * 1_000 + 1)],
        {
          stdio: ['ignore', 'pipe', 'inherit'],
        },
      );
      let output = '';
      const started = Promise.withResolvers<void>();
      child.stdout!.on('data', (bytes: Buffer) => {
        output += bytes.toString();
        started.resolve();
      });
      await started.promise;
      await wait(round * 8);
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('close', resolve));
      for (const line of output.split('\n').slice(0, -1)) {
        const [what, digest] = line.split(' ') as [string, Digest];
        if (what === 'put') acknowledged.add(digest);
        else {
          acknowledged.delete(digest);
          maybe.add(digest);
        }
      }
      await using store = await openContentStore({ directory, clock });
      assert.deepEqual(await readdir(join(directory, 'tmp')), []);
      for (const digest of acknowledged) {
        const bytes = concat(...(await Array.fromAsync(store.read(digest))));
        assert.equal(digestOf(bytes), digest);
      }
      assert.deepEqual((await store.scrub()).damaged, []);
    }
    await using store = await openContentStore({ directory, clock: { nowMs: () => 1e12 } });
    const report = await store.collect(acknowledged);
    assert.equal(report.blobsKept, acknowledged.size);
    const totals = await store.totals();
    assert.equal(totals.blobs, acknowledged.size, 'files without a row went too');
    for (const digest of maybe) assert.equal(await store.has(digest), false);
  });
}
