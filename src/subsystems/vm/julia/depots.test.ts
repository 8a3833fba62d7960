import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import { Depots, readCompiled } from './depots.ts';

describe('what was compiled', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'hypermesh-depots-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const key = (number: number) => number.toString(16).padStart(64, '0');
  const files = [{ path: 'v1.5/Words/a_B1.ji', bytes: Buffer.from('compiled') }];

  it('is kept whole, and readable for the users of boxes', async () => {
    const depots = await Depots.open(folder);
    assert.equal(await depots.hold(key(1)), null);
    await depots.add(key(1), files);
    using depot = (await depots.hold(key(1)))!;
    const at = join(depot.path, 'compiled/v1.5/Words/a_B1.ji');
    assert.equal(readFileSync(at, 'utf8'), 'compiled');
    assert.deepEqual([statSync(at).mode & 0o777, statSync(join(at, '../..')).mode & 0o777], [0o644, 0o755]);
  });

  it('makes room by removing what was used longest ago, but nothing that is held', async () => {
    const depots = await Depots.open(folder);
    for (let number = 0; number < 64; number++) {
      await depots.add(key(number), files);
      utimesSync(join(folder, key(number)), number, number);
    }
    using _held = await depots.hold(key(0));
    utimesSync(join(folder, key(0)), 0, 0);
    await depots.add(key(64), files);
    const left = readdirSync(folder);
    assert.deepEqual([left.length, left.includes(key(0)), left.includes(key(1))], [64, true, false]);
    await depots.clear();
    assert.deepEqual(readdirSync(folder), []);
  });

  it('heals what a crash left', async () => {
    mkdirSync(join(folder, '.new-x/compiled'), { recursive: true });
    await Depots.open(folder);
    assert.deepEqual(readdirSync(folder), []);
  });
});

describe('what a box says that it compiled', () => {
  const sent = (list: readonly (readonly [path: string, bytes: Uint8Array])[]) =>
    Buffer.concat(list.flatMap(([path, bytes]) => [Buffer.from(`${bytes.length} ${path}\n`), bytes]));

  it('is read', () => {
    const word = fc.stringMatching(/^[A-Za-z0-9_]{1,20}$/);
    const file = fc.tuple(fc.tuple(word, word), fc.uint8Array({ maxLength: 50 }));
    fc.assert(
      fc.property(fc.uniqueArray(file, { selector: ([names]) => names.join('/'), maxLength: 5 }), (list) => {
        const named = list.map(([[name, slug], bytes]) => [`v1.5/${name}/${slug}.ji`, bytes] as const);
        const read = readCompiled(sent(named))?.map(({ path, bytes }) => [path, Buffer.from(bytes)]);
        assert.deepEqual(
          read,
          named.map(([path, bytes]) => [path, Buffer.from(bytes)]),
        );
      }),
    );
  });

  it('is refused when it is in another form', () => {
    const bytes = Buffer.from('x');
    for (const path of ['v1.5/../x.ji', '/etc/x.ji', 'v1.5/Words/x.so', 'v1.5/Words/..', 'v1.5/W/x.ji/y.ji', 'x.ji'])
      assert.equal(readCompiled(sent([[path, bytes]])), null, path);
    const good = 'v1.5/Words/x.ji';
    assert.equal(
      readCompiled(
        sent([
          [good, bytes],
          [good, bytes],
        ]),
      ),
      null,
      'the same twice',
    );
    for (const text of [
      '1',
      `2 ${good}\nx`,
      `-1 ${good}\n`,
      `1e9 ${good}\n`,
      `99999999999 ${good}\n`,
      '\n',
      'x'.repeat(1_000),
    ])
      assert.equal(readCompiled(Buffer.from(text)), null, text);
  });

  it('never throws', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        readCompiled(bytes);
      }),
    );
  });
});
