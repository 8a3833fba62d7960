import assert from 'node:assert/strict';
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, it } from 'node:test';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
import { Trees } from './trees.ts';

describe('Trees', async () => {
  const root = await mkdtemp(path.join(tmpdir(), 'hypermesh-trees-'));
  after(() => rm(root, { recursive: true, force: true }));
  const assets = new MemoryTrees();
  const limits = { treeBytesMax: 1_000, filesMax: 10 };

  it('hold() writes a tree once, whole, with fixed modes and times', async () => {
    const directory = path.join(root, 'whole');
    const trees = await Trees.open({ assets }, { directory, ...limits });
    const layer = assets.add({ 'a/b.txt': Buffer.from('bee'), 'a/link': { link: 'b.txt' } });
    const mask = process.umask(0o077);
    const [one, two] = await Promise.all([trees.hold(layer), trees.hold(layer)]).finally(() => process.umask(mask));
    assert.equal(one.path, two.path);
    assert.equal(await readFile(path.join(one.path, 'a/b.txt'), 'utf8'), 'bee');
    assert.equal(await readlink(path.join(one.path, 'a/link')), 'b.txt');
    for (const name of ['', 'a', 'a/b.txt']) {
      const { mtimeMs, mode } = await lstat(path.join(one.path, name));
      assert.deepEqual([mtimeMs, mode & 0o777], [946_684_800_000, name.endsWith('.txt') ? 0o644 : 0o755], name);
    }
    const again = await Trees.open({ assets: new MemoryTrees() }, { directory, ...limits });
    assert.equal((await again.hold(layer)).path, one.path);
  });

  it('hold() refuses what is too large or lies outside, and leaves nothing', async () => {
    const directory = path.join(root, 'refused');
    const trees = await Trees.open({ assets }, { directory, ...limits });
    await assert.rejects(trees.hold(assets.add({ large: Buffer.alloc(1_001) })), { code: 'limit-exceeded' });
    for (const name of ['../out', '/etc/out', 'a/../../out'])
      await assert.rejects(trees.hold(assets.add({ [name]: Buffer.from('x') })), { code: 'tree-invalid' });
    await assert.rejects(trees.hold(assets.add({ a: { link: '/tmp' }, 'a/b': Buffer.from('x') })));
    await assert.rejects(trees.hold(`sha256:${'0'.repeat(64)}`), { code: 'blob-not-found' });
    assert.deepEqual(await readdir(directory), ['boot']);
  });

  it('removes what was used longest ago and nobody holds, and what a crash left', async () => {
    const directory = path.join(root, 'kept');
    await mkdir(path.join(directory, '.new-0-abc'), { recursive: true });
    const trees = await Trees.open({ assets }, { directory, ...limits, keptBytesMax: 250 });
    const [a, b, c, d] = [1, 2, 3, 4].map((n) => assets.add({ [`file${n}`]: Buffer.alloc(100) }));
    const held = await trees.hold(a!);
    (await trees.hold(b!))[Symbol.dispose]();
    (await trees.hold(c!))[Symbol.dispose]();
    assert.equal((await readdir(directory)).length, 3);
    await readdir(held.path);
    held[Symbol.dispose]();
    (await trees.hold(d!))[Symbol.dispose]();
    await assert.rejects(readdir(held.path), { code: 'ENOENT' });
  });
});
