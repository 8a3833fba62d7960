import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import type { Json } from '../../base/json.ts';
import { MemoryTrees, SMALL_POLICY } from '../../testing/runtime-conformance.ts';
import { assemble } from '../../testing/wat.ts';
import { openExecution } from './index.ts';

interface Vector {
  readonly name: string;
  /** null: a component. */
  readonly wat: string | null;
  readonly wasm: string;
  readonly input: Json;
  readonly files: Readonly<Record<string, string>>;
  readonly fuel: string | null;
  readonly expect: {
    readonly termination: string;
    readonly exitCode: number | null;
    readonly output: Json;
    readonly fuelUsed: string;
  };
}

const FOLDER = new URL('../../../test/vectors/run/', import.meta.url);

describe('vectors of docs/protocol/run.md', () => {
  it('run and cost as they say', async () => {
    const vectors = JSON.parse(readFileSync(new URL('valid.json', FOLDER), 'utf8')) as Vector[];
    const trees = new MemoryTrees();
    await using execution = await openExecution({ assets: trees });
    for (const { name, wat, wasm, input, files, fuel, expect } of vectors) {
      if (wat !== null) assert.equal(Buffer.from(await assemble(wat)).toString('hex'), wasm, name);
      const texts = Object.entries(files).map(([path, text]) => [path, Buffer.from(text)] as const);
      const layer = trees.add({ 'main.wasm': Uint8Array.fromHex(wasm), ...Object.fromEntries(texts) });
      const policy = { ...SMALL_POLICY, ...(fuel === null ? {} : { fuel: BigInt(fuel) }) };
      const result = await execution.run({ kind: 'wasm', layer, entry: 'main.wasm', args: [], input, policy });
      const { termination, exitCode, output } = result;
      assert.deepEqual({ termination, exitCode, output, fuelUsed: result.usage.fuelUsed }, expect, name);
    }
  });
});
