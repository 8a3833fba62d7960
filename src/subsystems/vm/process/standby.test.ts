import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { after, describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { until } from '../../../testing/until.ts';
import { openProcessSandbox } from './sandbox.ts';
import { Standby, type StandbyBounds, type StandbyResources } from './standby.ts';

const MiB = 2 ** 20;
const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-standby-'));
const sandbox = await openProcessSandbox({ directory });
const { reason } = await sandbox.probe();

describe('Standby', { skip: reason ?? false }, () => {
  after(async () => {
    await sandbox[Symbol.asyncDispose]();
    await rm(directory, { recursive: true, force: true });
  });
  let held = 0;

  function prepare(standby: Standby, key: string, { script = 'read x; echo $x', memoryBytes = 32 * MiB } = {}): void {
    standby.prepare(key, memoryBytes, async () => {
      const limits = { cpuCores: 1, wallMs: 10_000, pids: 16, tmpBytes: MiB, fileBytes: MiB, outputBytes: 1_024 };
      const box = await sandbox.startAhead({
        ...{ command: ['/bin/sh', '-c', script], root: 'host', mounts: [], environment: {} },
        limits: { ...limits, memoryBytes },
      });
      held += 1;
      return {
        box,
        held: {
          [Symbol.dispose]: () => {
            held -= 1;
          },
        },
      };
    });
  }

  async function settled(standby: Standby): Promise<number> {
    await until('it has settled', () => standby.status().isSettled);
    return standby.status().boxes;
  }

  function open(bounds: Partial<StandbyBounds> = {}) {
    const standby = new Standby({ boxesMax: 2, memoryBytesMax: 100 * MiB, ...bounds });
    return Object.assign(standby, { [Symbol.asyncDispose]: () => standby.clear() });
  }

  it('gives a box to one run, and to no other', async () => {
    await using standby = open();
    prepare(standby, 'a');
    prepare(standby, 'a');
    assert.equal(await settled(standby), 1);
    assert.equal(standby.take('b'), null);
    const waiting = standby.take('a');
    assert.equal(standby.take('a'), null);
    const box = await waiting!.box.begin();
    box.stdin.end('once\n');
    assert.equal(await text(box.stdout), 'once\n');
    await box.exit;
    assert.equal(held, 0);
  });

  it('bounds their number, their memory, and how long they wait', async () => {
    await using standby = open();
    for (const key of ['a', 'b', 'c']) {
      prepare(standby, key);
      await settled(standby);
    }
    assert.equal(standby.status().boxes, 2);
    assert.equal(standby.take('a'), null);
    prepare(standby, 'large', { memoryBytes: 80 * MiB });
    assert.equal(await settled(standby), 1);
    prepare(standby, 'too large', { memoryBytes: 101 * MiB });
    assert.equal(await settled(standby), 1);
    await standby.clear();
    await using brief = open({ idleMs: 100 });
    prepare(brief, 'a');
    await until('it was started', () => held > 0, { everyMs: 5 });
    await until('nothing waits any more', () => brief.status().boxes === 0 && held === 0);
  });

  it('gives up what ends, works without end, or wakes up; and does not start it again', async () => {
    await using standby = open({ loadingCpuMsMax: 300 });
    for (const [key, script] of [
      ['ends', 'exit 0'],
      ['works', 'while :; do :; done'],
      ['wakes', 'sleep 0.7; while :; do :; done'],
    ] as const) {
      prepare(standby, key, { script });
      await until(`${key}: it is gone`, () => held === 0 && standby.status().isSettled);
      prepare(standby, key, { script });
      assert.deepEqual([standby.status(), held], [{ boxes: 0, isSettled: true }, 0], key);
    }
  });

  it('takes its memory from the resources of the node, and gives way to others', async () => {
    const leased = new Map<string, number>();
    let waiting = 0;
    let count = 0;
    const sum = () => [...leased.values()].reduce((one, other) => one + other, 0);
    const capacity = { cpuCores: 1, memoryBytes: 80 * MiB, storageBytes: 0 };
    const resources: StandbyResources = {
      async allocate(request, { signal } = {}) {
        if (sum() + request.memoryBytes > capacity.memoryBytes)
          return new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
        const id = String(count++);
        leased.set(id, request.memoryBytes);
        return { id, request, grantedAtMs: 0, expiresAtMs: 0 };
      },
      release: async (id) => void leased.delete(id),
      usage: async () => ({ capacity, leased: { ...capacity, memoryBytes: sum() }, leases: leased.size, waiting }),
    };
    await using standby = Object.assign(new Standby({ boxesMax: 4 }, resources), {
      [Symbol.asyncDispose]: () => standby.clear(),
    });
    for (const key of ['a', 'b', 'c']) prepare(standby, key);
    assert.equal(await settled(standby), 2);
    assert.equal(sum(), 64 * MiB);
    // The run has a lease of its own.
    standby.take('a')!.box.kill();
    assert.equal(sum(), 32 * MiB);
    prepare(standby, 'c');
    assert.equal(await settled(standby), 2);
    waiting = 1;
    await until('one went', () => standby.status().boxes < 2);
    await pause(600);
    // Less than half of the memory is lent now.
    assert.deepEqual([standby.status().boxes, sum()], [1, 32 * MiB]);
  });

  it('ends all of them, also those that are on their way', async () => {
    const standby = open();
    prepare(standby, 'a');
    await settled(standby);
    prepare(standby, 'b');
    await standby.clear();
    assert.deepEqual([standby.status(), held], [{ boxes: 0, isSettled: true }, 0]);
    // What failed before may be tried again.
    prepare(standby, 'b');
    assert.equal(await settled(standby), 1);
    await standby.clear();
  });
});
