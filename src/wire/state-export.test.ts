import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, fromHex, hex } from '../base/bytes.ts';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import { decodeStateExport, StateExportEncoder, type StateExportMeta } from './state-export.ts';

interface Section {
  readonly name: string;
  readonly version: number;
  readonly pieces: readonly Uint8Array[];
}

function vectors<T>(name: string): T[] {
  const url = new URL(`../../test/vectors/state-export/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(url, 'utf8')) as T[];
}

function encoded(meta: StateExportMeta, sections: readonly Section[]): Uint8Array {
  const encoder = new StateExportEncoder();
  const parts = [encoder.start(meta)];
  for (const { name, version, pieces } of sections) {
    parts.push(encoder.section(name, version), ...pieces.map((piece) => encoder.piece(piece)));
  }
  return concat(...parts, encoder.end());
}

async function* cut(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function decoded(bytes: Uint8Array, size = 1_000): Promise<{ header: StateExportMeta; sections: Section[] }> {
  let header: StateExportMeta | undefined;
  const sections: (Section & { pieces: Uint8Array[] })[] = [];
  for await (const item of decodeStateExport(cut(bytes, size))) {
    if (item.kind === 'header') header = item.header;
    if (item.kind === 'section') sections.push({ name: item.name, version: item.version, pieces: [] });
    if (item.kind === 'piece') sections.at(-1)!.pieces.push(item.bytes);
  }
  return { header: header!, sections };
}

const META: StateExportMeta = { createdAtMs: 1, software: '0.1.0', networkId: null };
const SMALL = encoded(META, [
  { name: 'assets', version: 2, pieces: [Uint8Array.of(1, 2, 3), Uint8Array.of(4)] },
  { name: 'state', version: 1, pieces: [Uint8Array.of(5)] },
]);

for (const vector of vectors<{
  name: string;
  hex: string;
  header: StateExportMeta;
  sections: { name: string; version: number; content: string }[];
}>('valid')) {
  test(`valid vector: ${vector.name}`, async () => {
    const { header, sections } = await decoded(fromHex(vector.hex));
    assert.deepEqual(header, vector.header);
    assert.deepEqual(
      sections.map(({ name, version, pieces }) => ({ name, version, content: hex(concat(...pieces)) })),
      vector.sections,
    );
    assert.equal(hex(encoded(header, sections)), vector.hex);
  });
}

for (const { name, code, hex: text } of vectors<{ name: string; code: ErrorCode; hex: string }>('invalid')) {
  test(`invalid vector: ${name}`, async () => {
    await assert.rejects(decoded(fromHex(text)), (error) => isCoded(error, code));
  });
}

test('any export survives the way there and back, however the stream is cut', async () => {
  const section = fc.record(
    {
      name: fc.stringMatching(/^[a-z][a-z0-9-]{0,20}$/),
      version: fc.integer({ min: 1, max: 1_000_000 }),
      pieces: fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { maxLength: 4 }),
    },
    { noNullPrototype: true },
  );
  const meta = fc.record(
    {
      createdAtMs: fc.nat(),
      software: fc.string({ minLength: 1, maxLength: 20 }),
      networkId: fc.option(fc.string({ maxLength: 100 })),
    },
    { noNullPrototype: true },
  );
  await fc.assert(
    fc.asyncProperty(
      meta,
      fc.uniqueArray(section, { selector: ({ name }) => name, maxLength: 4 }),
      fc.integer({ min: 1, max: 500 }),
      async (header, sections, size) => {
        assert.deepEqual(await decoded(encoded(header, sections), size), { header, sections });
      },
    ),
  );
});

test('one bit flipped anywhere is refused', async () => {
  for (let bit = 0; bit < SMALL.length * 8; bit++) {
    const bytes = SMALL.slice();
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    await assert.rejects(decoded(bytes), (error) => isCoded(error, 'state-invalid', 'state-too-new'), `bit ${bit}`);
  }
});

test('a stream cut at any byte is refused', async () => {
  for (let size = 0; size < SMALL.length; size++) {
    await assert.rejects(decoded(SMALL.subarray(0, size)), (error) => isCoded(error, 'state-invalid'), `${size} bytes`);
  }
});

test('random bytes are refused', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), fc.boolean(), async (noise, afterStart) => {
      const bytes = afterStart ? concat(SMALL.subarray(0, 9), noise) : noise;
      await assert.rejects(decoded(bytes), (error) => isCoded(error, 'state-invalid', 'state-too-new'));
    }),
  );
});

test('decodeStateExport() stops at the size limit and closes its source', async () => {
  let closed = false;
  async function* endless(): AsyncGenerator<Uint8Array> {
    try {
      yield SMALL.subarray(0, SMALL.length - 1);
      for (;;) yield new Uint8Array(1_000);
    } finally {
      closed = true;
    }
  }
  const reading = Array.fromAsync(decodeStateExport(endless(), { sizeMax: SMALL.length - 2 }));
  await assert.rejects(reading, (error) => isCoded(error, 'limit-exceeded'));
  assert.ok(closed);
});
