import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openExecution } from '../src/subsystems/vm/index.ts';
import { MemoryTrees, SMALL_POLICY } from '../src/testing/runtime-conformance.ts';
import { type Bench, inTurn, timed } from './harness.ts';

const CALLS = 200;
const ROUNDS = 20;

export const bench: Bench = {
  name: 'wasm',
  about: 'one run of a small WASI command, JSON in and out, against an instance in this process without any box',
  async run() {
    const module = await readFile(new URL('../templates/wasm/main.wasm', import.meta.url));
    const trees = new MemoryTrees();
    const layer = trees.add({ 'main.wasm': module });
    const request = {
      kind: 'wasm',
      layer,
      entry: 'main.wasm',
      args: [],
      input: { name: 'Ada' },
      policy: SMALL_POLICY,
    } as const;
    // In boxes of the machine, where it has them.
    await using stack = new AsyncDisposableStack();
    const directory = async () => {
      const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
      stack.defer(() => rm(folder, { recursive: true, force: true }));
      return folder;
    };
    const kept = stack.use(await openExecution({ assets: trees }, { directory: await directory() }));
    const cold = stack.use(
      await openExecution({ assets: trees }, { directory: await directory(), limits: { keptBoxesMax: 0 } }),
    );

    const compiled = new WebAssembly.Module(new Uint8Array(module));
    const bare = () => {
      const memory = () => instance.exports['memory'] as WebAssembly.Memory;
      const input = Buffer.from(JSON.stringify(request.input));
      let at = 0;
      const printed: Buffer[] = [];
      const instance = new WebAssembly.Instance(compiled, {
        wasi_snapshot_preview1: {
          fd_read: (_fd: number, vectors: number, _count: number, out: number) => {
            const view = new DataView(memory().buffer);
            const piece = input.subarray(at, at + view.getUint32(vectors + 4, true));
            new Uint8Array(memory().buffer).set(piece, view.getUint32(vectors, true));
            at += piece.length;
            view.setUint32(out, piece.length, true);
            return 0;
          },
          fd_write: (_fd: number, vectors: number, count: number, out: number) => {
            const view = new DataView(memory().buffer);
            let total = 0;
            for (let vector = vectors; vector < vectors + 8 * count; vector += 8) {
              const from = view.getUint32(vector, true);
              const length = view.getUint32(vector + 4, true);
              printed.push(Buffer.from(new Uint8Array(memory().buffer, from, length)));
              total += length;
            }
            view.setUint32(out, total, true);
            return 0;
          },
        },
      });
      (instance.exports['_start'] as () => void)();
      return JSON.parse(Buffer.concat(printed).toString('utf8')) as unknown;
    };

    const warm = await inTurn(
      CALLS,
      () => timed(() => kept.run(request)),
      () => timed(bare),
    );
    const fresh = await inTurn(
      ROUNDS,
      () => timed(() => cold.run(request)),
      () => timed(() => kept.run(request)),
    );
    // A fresh instance each, 8 callers at a time.
    const many = await inTurn(
      ROUNDS,
      async () =>
        (await timed(() =>
          Promise.all(
            Array.from({ length: 8 }, async () => {
              for (let call = 0; call < CALLS / 8; call++) await kept.run(request);
            }),
          ),
        )) / CALLS,
      () => timed(bare),
    );
    const component = await readFile(new URL('../examples/packages/series/component.wasm', import.meta.url));
    const command = await readFile(new URL('../examples/packages/series/main.wasm', import.meta.url));
    const series = trees.add({ 'component.wasm': component, 'main.wasm': command });
    const looking = { ...request, layer: series, input: { series: [1, 2, 4, 8] } };
    const components = await inTurn(
      CALLS,
      () => timed(() => kept.run({ ...looking, entry: 'component.wasm' })),
      () => timed(() => kept.run({ ...looking, entry: 'main.wasm' })),
    );
    const reference = 'bare instance in process';
    return [
      { name: 'warm call', unit: 'ms', reference, oursMax: 5, ours: warm.ours, theirs: warm.theirs },
      { name: 'each of many', unit: 'ms', reference, oursMax: 5, ours: many.ours, theirs: many.theirs },
      {
        ...{ name: 'warm component', unit: 'ms', reference: 'the same program as a module', oursMax: 5 },
        ...components,
      },
      { name: 'a process each', unit: 'ms', reference: 'warm call', ours: fresh.ours, theirs: fresh.theirs },
    ];
  },
};
