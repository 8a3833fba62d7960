import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import type { Digest } from '../src/base/digest.ts';
import { ContainerRuntime } from '../src/subsystems/vm/container/container.ts';
import { DEFAULT_LIMITS } from '../src/subsystems/vm/limits.ts';
import { openProcessSandbox } from '../src/subsystems/vm/process/sandbox.ts';
import { Trees } from '../src/subsystems/vm/process/trees.ts';
import { entriesFrom, type LayerEntry, layoutIn } from '../src/testing/image.ts';
import { MemoryTrees, SMALL_POLICY } from '../src/testing/runtime-conformance.ts';
import { type Bench, type Comparison, inTurn, timed } from './harness.ts';

const UNPACK_ROUNDS = 5;
const RUN_ROUNDS = 20;
const MiB = 2 ** 20;
const FILES = 2_000;
const FILE_BYTES = 16 * 1024;
const CAT = '/usr/bin/cat';

/** `cat` with its libraries, and many files that compress to about a half. */
function entries(seed: number): LayerEntry[] {
  const libraries = [...execFileSync('/usr/bin/ldd', [CAT], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g)];
  const base = entriesFrom([CAT, ...libraries.map(([, file]) => file!)]);
  let state = seed + 1;
  const files = Array.from({ length: FILES }, (_, index): LayerEntry => {
    const content = Buffer.alloc(FILE_BYTES);
    for (let at = 0; at < FILE_BYTES; at += 8) {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      content.writeUInt32LE(state, at);
    }
    return { path: `data/${index % 50}/${index}`, content, mode: 0o644 };
  });
  return [...base, ...files];
}

function packageOf(seed: number): Record<string, Uint8Array> {
  return layoutIn('image', {
    layers: [{ entries: entries(seed), compress: 'gzip' }],
    config: { Entrypoint: [CAT] },
  });
}

export const bench: Bench = {
  name: 'container',
  about: 'a container image: verified, merged and unpacked against GNU tar alone; then run, against a bare box',
  async run() {
    const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-bench-'));
    try {
      const assets = new MemoryTrees();
      await using sandbox = await openProcessSandbox({ directory });
      const { reason } = await sandbox.probe();
      if (reason !== null) throw new Error(reason);
      const limits = { treeBytesMax: 256 * MiB, filesMax: 20_000 };
      const trees = await Trees.open({ assets }, { directory: path.join(directory, 'trees'), ...limits });
      const roots = await Trees.open({ assets }, { directory: path.join(directory, 'roots'), ...limits });
      const runtime = new ContainerRuntime({ assets, sandbox, trees, roots }, { limits: DEFAULT_LIMITS });
      const answer = (layer: Digest) =>
        runtime.run({ kind: 'container', layer, entry: 'image', args: [], input: 1, policy: SMALL_POLICY });
      return [await unpacking(directory, assets, answer), await running(assets, sandbox, answer)];
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  },
};

async function unpacking(
  directory: string,
  assets: MemoryTrees,
  answer: (layer: Digest) => Promise<unknown>,
): Promise<Comparison> {
  let seed = 0;
  const target = path.join(directory, 'tar');
  const samples = await inTurn(
    UNPACK_ROUNDS,
    async () => {
      const layer = assets.add(packageOf(seed++));
      return timed(() => answer(layer));
    },
    async () => {
      const files = packageOf(seed++);
      const layer = Object.values(files).reduce((a, b) => (a.length > b.length ? a : b));
      await mkdir(target);
      await writeFile(path.join(directory, 'layer.tar.gz'), layer);
      const took = await timed(() =>
        execFileSync('/usr/bin/tar', ['-xzf', path.join(directory, 'layer.tar.gz'), '-C', target]),
      );
      await rm(target, { recursive: true });
      return took;
    },
  );
  const name = `first run of an image of ${FILES} files, ${(FILES * FILE_BYTES) / MiB} MiB`;
  return { name, unit: 'ms', reference: 'tar -xzf of its layer', ours: samples.ours, theirs: samples.theirs };
}

async function running(
  assets: MemoryTrees,
  sandbox: Awaited<ReturnType<typeof openProcessSandbox>>,
  answer: (layer: Digest) => Promise<unknown>,
): Promise<Comparison> {
  const layer = assets.add(packageOf(1_000));
  await answer(layer);
  const samples = await inTurn(
    RUN_ROUNDS,
    () => timed(() => answer(layer)),
    () =>
      timed(async () => {
        const box = await sandbox.start({
          command: [CAT],
          root: 'host',
          mounts: [],
          environment: {},
          limits: {
            ...{ memoryBytes: 24 * MiB, cpuCores: 1, wallMs: 10_000, pids: 64 },
            ...{ tmpBytes: MiB, fileBytes: MiB, outputBytes: 64 * 1024 },
          },
        });
        box.stdin.end('1');
        await Promise.all([text(box.stdout), text(box.stderr), box.exit]);
      }),
  );
  const reference = 'cat in a box of this machine';
  return { name: 'next run of it', unit: 'ms', reference, ratioMax: 1.2, ours: samples.ours, theirs: samples.theirs };
}
