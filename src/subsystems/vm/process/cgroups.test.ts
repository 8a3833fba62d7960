import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { Cgroups } from './cgroups.ts';

/** Folders and files as the kernel has them in version 2: those of a service in a slice, each with what it passes on to groups below. */
async function tree(t: TestContext, passed: Readonly<Record<string, string>>) {
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-cgroup-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const root = path.join(folder, 'cgroup');
  for (const [group, controllers] of Object.entries(passed)) {
    await mkdir(path.join(root, group), { recursive: true });
    await writeFile(path.join(root, group, 'cgroup.subtree_control'), `${controllers}\n`);
  }
  const self = path.join(folder, 'self');
  await mkdir(self);
  await writeFile(path.join(self, 'cgroup'), '0::/user.slice/node.service\n');
  await writeFile(
    path.join(self, 'mountinfo'),
    `22 1 0:21 / /proc rw - proc proc rw\n30 22 0:26 / ${root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n`,
  );
  return { root, self };
}

async function groupIn(folder: string): Promise<string> {
  const name = (await readdir(folder)).find((one) => one.startsWith('boxes-'));
  assert.ok(name, `no group in ${folder}`);
  return path.join(folder, name, 'one');
}

describe('control groups of version 2', () => {
  it('lie in the nearest group that passes controllers on, and have the limits of the box', async (t) => {
    const { root, self } = await tree(t, {
      '.': 'cpuset cpu io memory pids',
      'user.slice': 'cpu memory pids',
      'user.slice/node.service': '',
    });
    await using cgroups = await Cgroups.open('boxes', { self });
    assert.deepEqual(
      [...cgroups.enforces],
      ['memory', 'pids', 'cpu', 'cpuacct'].map((one) => [one, 'cgroup v2']),
    );
    const group = await cgroups.create('one');
    const folder = await groupIn(path.join(root, 'user.slice'));
    assert.equal(await readFile(path.join(folder, '..', 'cgroup.subtree_control'), 'utf8'), '+memory +pids +cpu');
    // All boxes together, behind what else wants a processor: the node answers first.
    assert.equal(await readFile(path.join(folder, '..', 'cpu.weight'), 'utf8'), '50');
    assert.deepEqual(group!.entrances, [path.join(folder, 'cgroup.procs')]);
    await group!.limit({ memoryBytes: 2 ** 26, pids: 9, cpuCores: 1.5, yields: true });
    const read = async (name: string) => readFile(path.join(folder, name), 'utf8');
    assert.deepEqual(
      await Promise.all(
        ['memory.max', 'memory.swap.max', 'memory.oom.group', 'pids.max', 'cpu.max', 'cpu.weight'].map(read),
      ),
      ['67108864', '0', '1', '9', '150000 100000', '6'],
    );
    await writeFile(path.join(folder, 'memory.peak'), '1048576\n');
    await writeFile(path.join(folder, 'memory.events'), 'low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n');
    await writeFile(path.join(folder, 'cpu.stat'), 'usage_usec 250000\nuser_usec 200000\nsystem_usec 50000\n');
    assert.deepEqual(await group!.usage(), { peakMemoryBytes: 1_048_576, cpuMs: 250, oomKills: 3 });
  });

  it('enforce only what is passed on, and nothing where nothing is', async (t) => {
    const some = await tree(t, { '.': 'pids', 'user.slice': '', 'user.slice/node.service': '' });
    await using cgroups = await Cgroups.open('boxes', { self: some.self });
    assert.deepEqual([...cgroups.enforces], [['pids', 'cgroup v2']]);
    const none = await tree(t, { '.': '', 'user.slice': '', 'user.slice/node.service': '' });
    await using other = await Cgroups.open('boxes', { self: none.self });
    assert.deepEqual([[...other.enforces], await other.create('one')], [[], null]);
  });
});
