import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { RuntimeStatus } from '../../src/capabilities/vm.ts';
import { until } from '../../src/testing/until.ts';
import { freshHome, type Home, nodeOf, PROJECT, writePackage } from './support.ts';

/** Programs in boxes through a node in a process of its own: many at once, given up, and when the node is killed. */
const RUNS = 24;
const PROGRAM = `
import json, os, sys, time
input = json.load(sys.stdin)
if input.get("sleep"):
    if os.fork() == 0: time.sleep(3600)
    time.sleep(3600)
print(json.dumps(input["number"]))
`;

let home: Home;
let missing: string | null;
before(async () => {
  home = await freshHome();
  await home.json(['up', '--detach']);
  const { runtimes } = await home.json<{ runtimes: readonly RuntimeStatus[] }>(['runtime', 'list']);
  missing = runtimes.find(({ kind }) => kind === 'python')?.reason ?? null;
  const manifest = { name: 'test/runs', version: '1.0.0', language: 'python', entry: 'main.py' };
  await home.json(['publish', await writePackage(join(home.folder, 'runs'), manifest, { 'main.py': PROGRAM })]);
});
after(() => home[Symbol.asyncDispose]());

test('many runs at once: none is lost, and the node answers others meanwhile', async (t) => {
  if (missing !== null) return t.skip(missing);
  const { client } = await nodeOf(home);
  let running = RUNS;
  const runs = Array.from({ length: RUNS }, async (_, number) => {
    const { output } = await client.run({ ref: 'test/runs', input: { number } });
    running -= 1;
    return output;
  });
  let answers = 0;
  while (running > 0) {
    await client.status();
    if (running > 0) answers += 1;
    await sleep(20);
  }
  assert.deepEqual(await Promise.all(runs), [...Array(RUNS).keys()]);
  assert.ok(answers > 2, `${answers} answers`);
});

test('a run that is given up makes room for the next one', async (t) => {
  if (missing !== null) return t.skip(missing);
  const { client } = await nodeOf(home);
  const gaveUp = Array.from({ length: 4 }, () =>
    assert.rejects(
      client.run({ ref: 'test/runs', input: { number: 0, sleep: true } }, { signal: AbortSignal.timeout(1_500) }),
    ),
  );
  const { output } = await client.run({ ref: 'test/runs', input: { number: 7 } });
  assert.equal(output, 7);
  await Promise.all(gaveUp);
});

test('a request may set every limit, and the answer comes back', async () => {
  await home.json(['publish', join(PROJECT, 'templates', 'wasm')]);
  const all = ['--memory', '2MiB', '--timeout', '60', '--cpus', '0.5', '--disk', '1MiB', '--output', '4KiB'];
  const enough = await home.json(['run', 'my-scope/my-package', '--input', '{}', ...all, '--fuel', '100000000']);
  assert.equal(enough['termination'], 'exit');
  assert.equal((await home.json(['run', 'my-scope/my-package', '--fuel', '2'], 9))['termination'], 'fuel');
  assert.equal((await home.json(['run', 'my-scope/my-package', '--output', '1'], 9))['termination'], 'output');
});

test('a node that is killed leaves no process, no mount and no control group', async (t) => {
  if (missing !== null) return t.skip(missing);
  const { client, pid } = await nodeOf(home);
  const lost = assert.rejects(client.run({ ref: 'test/runs', input: { number: 0, sleep: true } }));
  const folder = join(home.home, 'vm');
  await until(
    'it has forked',
    async () => (await processesOf(pid)).filter((line) => line.includes('python')).length >= 2,
  );
  const mine = await processesOf(pid);
  const own = await groupNames(mine);
  const groups = (await groupsOf(pid)).filter((group) => own.has(basename(group)));
  assert.ok(mine.length > 3, mine.join('\n'));
  process.kill(pid, 'SIGKILL');
  await lost;
  const left = async () => [
    ...(await stillThere(mine)),
    ...(await mountsOf(folder)),
    ...(await groupsOf(pid)).filter((group) => groups.includes(group)),
  ];
  await until('nothing is left', async () => {
    assert.deepEqual(await left(), []);
    return true;
  });
  await home.json(['up', '--detach']);
  const { output } = await (await nodeOf(home)).client.run({ ref: 'test/runs', input: { number: 8 } });
  assert.equal(output, 8);
});

/** All that descends from a process, each as its number, when it started, and its arguments. */
async function processesOf(root: number): Promise<string[]> {
  const children = new Map<number, string[]>();
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const stat = await readFile(`/proc/${name}/stat`, 'latin1').catch(() => '');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const line = `${name} ${fields[19]} ${await readFile(`/proc/${name}/cmdline`, 'latin1').catch(() => '')}`;
    children.set(Number(fields[1]), [...(children.get(Number(fields[1])) ?? []), line]);
  }
  const found: string[] = [];
  for (const waiting = [root]; waiting.length > 0; ) {
    const below = children.get(waiting.pop()!) ?? [];
    found.push(...below);
    waiting.push(...below.map((line) => Number(line.split(' ', 1)[0])));
  }
  return found;
}

async function stillThere(lines: readonly string[]): Promise<string[]> {
  const checked = await Promise.all(
    lines.map(async (line) => {
      const [pid, startedAt] = line.split(' ');
      const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return fields[19] === startedAt && fields[0] !== 'Z' ? [line] : [];
    }),
  );
  return checked.flat();
}

async function mountsOf(folder: string): Promise<string[]> {
  return (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').filter((line) => line.includes(folder));
}

/** How the node calls its groups: by those that its programs are in. Other nodes on this machine have others. */
async function groupNames(lines: readonly string[]): Promise<ReadonlySet<string>> {
  const texts = await Promise.all(
    lines.map((line) => readFile(`/proc/${line.split(' ', 1)[0]}/cgroup`, 'latin1').catch(() => '')),
  );
  return new Set(texts.flatMap((text) => text.match(/hypermesh-[0-9a-f-]+/g) ?? []));
}

/** Control groups of any node, beneath the groups that a process is in. */
async function groupsOf(pid: number): Promise<string[]> {
  const own = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => readFile('/proc/self/cgroup', 'utf8'));
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8'))
    .split('\n')
    .filter((line) => / - cgroup2? /.test(line));
  const parents = mounts.flatMap((line) =>
    own.split('\n').map((group) => join(line.split(' ')[4]!, group.split(':')[2] ?? '')),
  );
  const found = await Promise.all(
    [...new Set(parents)].map(async (parent) =>
      (await readdir(parent).catch(() => []))
        .filter((one) => one.startsWith('hypermesh-'))
        .map((one) => join(parent, one)),
    ),
  );
  return found.flat();
}
