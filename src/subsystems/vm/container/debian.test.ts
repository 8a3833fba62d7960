import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { isCoded } from '../../../base/errors.ts';
import type { RunResult } from '../../../capabilities/vm.ts';
import { type ImageParts, layoutIn } from '../../../testing/image.ts';
import { MemoryTrees, SMALL_POLICY } from '../../../testing/runtime-conformance.ts';
import { fetchPackages, readAptSources } from '../added/apt.ts';
import { openExecution } from '../execution.ts';

/** Packages of the distribution come from its mirror; where none answers in this time, there is nothing to test. */
const FETCH_MS = 60_000;

/** A package and all that it needs, each as the archive of its files: that is a layer of an image. */
async function layersOf(name: string, folder: string): Promise<ImageParts['layers']> {
  const { files } = await fetchPackages([name], await readAptSources('/etc/apt'), {
    work: folder,
    suites: [],
    signal: AbortSignal.timeout(FETCH_MS),
  });
  return files.map((file) => ({
    entries: execFileSync('/usr/bin/dpkg-deb', ['--fsys-tarfile', file], { maxBuffer: 2 ** 28 }),
    compress: 'zstd',
  }));
}

/** Runs an image made of a package of the distribution; null when it cannot be had here. */
async function run(t: TestContext, name: string, config: object, input: unknown): Promise<RunResult | null> {
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-debian-'));
  try {
    const layers = await layersOf(name, folder).catch((error: unknown) => {
      if (!isCoded(error, 'cancelled', 'runtime-unavailable')) throw error;
      t.skip(`no package ${name} can be had: ${error.message}`);
      return null;
    });
    if (layers === null) return null;
    const assets = new MemoryTrees();
    const layer = assets.add(layoutIn('image', { layers, config: { ...config } }));
    await using execution = await openExecution({ assets }, { directory: path.join(folder, 'vm') });
    const [status] = (await execution.runtimes()).filter(({ kind }) => kind === 'container');
    if (status?.available !== true) {
      t.skip(status?.reason ?? 'no container can run');
      return null;
    }
    const policy = { ...SMALL_POLICY, memoryBytes: 64 * 2 ** 20 };
    return await execution.run({ kind: 'container', layer, entry: 'image', args: [], input: input as never, policy });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

describe('images of a real distribution', { concurrency: 2 }, () => {
  it('busybox answers', async (t) => {
    const script = `read -r input; printf '{"came":%s,"tools":%s}' "$input" "$(busybox --list | busybox wc -l)"`;
    const result = await run(t, 'busybox-static', { Entrypoint: ['busybox', 'sh', '-c', script] }, { a: [1] });
    if (result === null) return;
    const output = result.output as { came: unknown; tools: number };
    assert.deepEqual([output.came, result.exitCode, result.stderr], [{ a: [1] }, 0, '']);
    assert.ok(output.tools > 100);
  });

  it('a Debian with Python answers', async (t) => {
    const program =
      'import json, statistics, sys; print(json.dumps([statistics.median(json.load(sys.stdin)), sys.implementation.name]))';
    const result = await run(t, 'python3', { Entrypoint: ['python3', '-I', '-c', program] }, [3, 1, 2]);
    if (result === null) return;
    assert.deepEqual([result.output, result.stderr], [[2, 'cpython'], '']);
  });
});
