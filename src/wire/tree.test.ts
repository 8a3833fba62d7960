import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { concat, fromBase64, hex, utf8 } from '../base/bytes.ts';
import { sha256 } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import {
  comparePaths,
  decodeTree,
  encodedSize,
  encodeHeader,
  encodeTree,
  type TreeEntry,
  TreeRules,
  TreeScanner,
  type TreeSource,
} from './tree.ts';

interface Item {
  readonly entry: TreeEntry;
  readonly content: Uint8Array;
}

const directory = (path: string): Item => ({
  entry: { path, kind: 'directory', size: 0, executable: false },
  content: new Uint8Array(),
});
const file = (path: string, content: Uint8Array = new Uint8Array(), executable = false): Item => ({
  entry: { path, kind: 'file', size: content.length, executable },
  content,
});
const link = (path: string, target: string): Item => ({
  entry: { path, kind: 'symlink', size: 0, executable: false, target },
  content: new Uint8Array(),
});

async function encode(items: readonly Item[]): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync(encodeTree(items satisfies readonly TreeSource[]))));
}

async function decode(bytes: Uint8Array, piece = bytes.length || 1): Promise<Item[]> {
  const pieces = [];
  for (let at = 0; at < bytes.length; at += piece) pieces.push(bytes.subarray(at, at + piece));
  const items: { entry: TreeEntry; offset: number; content: Uint8Array }[] = [];
  for await (const part of decodeTree(pieces)) {
    if (part.kind === 'entry') items.push({ entry: part.entry, offset: part.offset, content: new Uint8Array() });
    else items.at(-1)!.content = concat(items.at(-1)!.content, part.bytes);
  }
  return items.map(({ entry, offset, content }) => {
    assert.deepEqual(bytes.slice(offset, offset + entry.size), content);
    return { entry, content };
  });
}

/** Headers as they come, with no rule kept: what a hostile encoder could write. */
function forge(items: readonly Item[]): Uint8Array {
  return concat(
    ...items.flatMap(({ entry, content }) => [
      encodeHeader(entry),
      content,
      new Uint8Array((512 - (content.length % 512)) % 512),
    ]),
    new Uint8Array(1024),
  );
}

const refused = (code: 'tree-invalid' | 'limit-exceeded') => (error: unknown) => isCoded(error, code);

/** Trees of names that need every form of header, in canonical order. */
const trees = fc
  .uniqueArray(
    fc.record({
      parts: fc.array(fc.constantFrom('a', 'b-c', 'd.txt', 'ü', '漢字', '𝄞', 'n'.repeat(90), 'é'.repeat(60)), {
        minLength: 1,
        maxLength: 4,
      }),
      kind: fc.constantFrom('file', 'directory', 'symlink'),
      content: fc.uint8Array({ maxLength: 1_500 }),
      executable: fc.boolean(),
    }),
    { selector: ({ parts }) => parts.join('/'), maxLength: 12 },
  )
  .map((specs) => {
    const items = new Map<string, Item>();
    for (const { parts, kind, content, executable } of specs) {
      const path = parts.join('/');
      const made =
        kind === 'file'
          ? file(path, content, executable)
          : kind === 'directory'
            ? directory(path)
            : link(path, `${'../'.repeat(parts.length - 1)}${executable ? 'é'.repeat(70) : 'a/b'}`);
      items.set(path, made);
    }
    for (const path of [...items.keys()])
      for (let at = path.indexOf('/'); at > 0; at = path.indexOf('/', at + 1))
        items.set(path.slice(0, at), directory(path.slice(0, at)));
    return [...items.values()].sort((a, b) => comparePaths(a.entry.path, b.entry.path));
  });

test('decode(encode(tree)) is the tree, in whatever pieces, and its size was known before', async () => {
  await fc.assert(
    fc.asyncProperty(trees, fc.integer({ min: 1, max: 5_000 }), async (items, piece) => {
      const bytes = await encode(items);
      assert.equal(bytes.length, encodedSize(items.map(({ entry }) => entry)));
      assert.deepEqual(await decode(bytes, piece), items);
      assert.deepEqual(forge(items), bytes);
    }),
    { numRuns: 60 },
  );
});

test('any changed byte outside of contents is refused, and inside gives that content', async () => {
  const items = [
    directory('bin'),
    file('bin/run', utf8('#!/bin/sh'), true),
    link('link', 'bin/run'),
    file(`long-${'x'.repeat(120)}`, utf8('long')),
    file('z', utf8('last')),
  ];
  const bytes = await encode(items);
  for (let at = 0; at < bytes.length; at++) {
    for (const flip of [0x01, 0x20, 0x80, bytes[at]!]) {
      if (flip === 0) continue;
      const changed = bytes.slice();
      changed[at]! ^= flip;
      try {
        assert.deepEqual(await encode(await decode(changed)), changed);
      } catch (error) {
        assert.ok(isCoded(error, 'tree-invalid'), `byte ${at}: ${String(error)}`);
      }
    }
  }
  for (let length = 0; length < bytes.length; length += 256)
    await assert.rejects(decode(bytes.slice(0, length)), refused('tree-invalid'));
  for (const extra of [1, 512, 1024])
    await assert.rejects(decode(concat(bytes, new Uint8Array(extra))), refused('tree-invalid'));
});

test('random bytes are refused', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 3_000 }), async (bytes) => {
      await assert.rejects(decode(bytes), refused('tree-invalid'));
    }),
    { numRuns: 50 },
  );
});

/** Folders in folders, with names of 250 bytes. */
function nested(depth: number): string[] {
  return Array.from({ length: depth }, (_, i) =>
    Array(i + 1)
      .fill('n'.repeat(250))
      .join('/'),
  );
}

const UNSAFE: readonly [string, readonly Item[]][] = [
  ['absolute path', [file('/etc/passwd')]],
  ['empty path', [file('')]],
  ['climbing path', [file('../x')]],
  ['climbing in the middle', [directory('a'), file('a/../../x')]],
  ['dot part', [file('./x')]],
  ['empty part', [directory('a'), file('a//x')]],
  ['backslash', [file('a\\b')]],
  ['NUL', [file('a\u0000b')]],
  ['control character', [file('a\u001bb')]],
  ['C1 control character', [file('a\u009bb')]],
  ['name of 256 bytes', [file('x'.repeat(256))]],
  ['path of 1025 bytes', [...nested(4).map(directory), file(`${nested(4).at(-1)}/${'x'.repeat(22)}`)]],
  ['no folder entry', [file('a/b')]],
  ['through a link', [link('a', 'b'), file('a/x')]],
  ['through a file', [file('a'), file('a/x')]],
  ['wrong order', [file('b'), file('a')]],
  ['UTF-16 order instead of UTF-8 order', [file('𝄞'), file('\uff5e')]],
  ['twice', [file('a'), file('a')]],
  ['upper and lower case', [file('README'), file('readme')]],
  ['case of folders', [directory('A'), file('A/x'), directory('a')]],
  ['sharp s', [file('STRASSE'), file('straße')]],
  ['composed and decomposed', [file('e\u0301'), file('\u00e9')]],
  ['absolute link', [link('a', '/etc/passwd')]],
  ['link above the root', [link('a', '../x')]],
  ['deep link above the root', [directory('d'), link('d/a', '../../x')]],
  ['link that climbs after a name', [link('a', 'b/../../x')]],
  ['link to nothing', [link('a', '')]],
  ['link with an empty part', [link('a', 'b//c')]],
  ['link with a backslash', [link('a', '..\\x')]],
  ['link with a long target', [link('a', 'x'.repeat(1_025))]],
];

test('unsafe, ambiguous and unordered entries are refused both ways', async () => {
  for (const [why, items] of UNSAFE) {
    await assert.rejects(encode(items), refused('tree-invalid'), `encode: ${why}`);
    await assert.rejects(decode(forge(items)), refused('tree-invalid'), `decode: ${why}`);
  }
});

test('links inside the tree, odd but harmless names, and no entry at all are fine', async () => {
  const items = [
    file(' '),
    file('-rf'),
    directory('a'),
    link('a/b', '../c'),
    link('a/c', './b'),
    link('a/d', '../..c'),
    directory('a-b'),
    file('a/..b'),
    file('con'),
    link('dangling', 'nowhere/at/all'),
  ].sort((x, y) => comparePaths(x.entry.path, y.entry.path));
  assert.deepEqual(await decode(await encode(items)), items);
  assert.deepEqual(await decode(await encode([])), []);
});

test('the number of entries is bounded, and noticed at the first one too many', async () => {
  const items = ['a', 'b', 'c'].map((path) => file(path));
  await assert.rejects(Array.fromAsync(encodeTree(items, { entriesMax: 2 })), refused('limit-exceeded'));
  const scanner = new TreeScanner({}, { entriesMax: 2 });
  assert.throws(() => scanner.push(forge(items)), refused('limit-exceeded'));
  const rules = new TreeRules();
  assert.throws(() => {
    for (let i = 0; i <= 1_000_000; i++) rules.admit(file(String(i).padStart(7, '0')).entry);
  }, refused('limit-exceeded'));
});

test('of folders that are complete nothing is remembered', () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const rules = new TreeRules();
  const heap = () => {
    collect();
    return process.memoryUsage().heapUsed / 2 ** 20;
  };
  const digits = (n: number) => String(n).padStart(7, '0');
  const admit = (from: number, to: number) => {
    for (let i = from; i < to; i++) {
      const folder = digits(i - (i % 1_000));
      if (i % 1_000 === 0) rules.admit({ path: folder, kind: 'directory', size: 0, executable: false });
      else rules.admit(file(`${folder}/${'n'.repeat(100)}${digits(i)}`).entry);
    }
  };
  admit(0, 10_000);
  const few = heap();
  admit(10_000, 150_000);
  const grown = heap() - few;
  assert.equal(rules.count, 150_000);
  // With all names it was 30 MiB.
  assert.ok(grown < 5, `${grown} MiB for 140,000 entries`);
});

test('names clash in a folder that others of a longer name come between', () => {
  const admit = (...paths: string[]) => {
    const rules = new TreeRules();
    for (const path of paths) {
      const isFolder = path.endsWith('/');
      const entry = { path: isFolder ? path.slice(0, -1) : path, size: 0, executable: false };
      rules.admit({ ...entry, kind: isFolder ? 'directory' : 'file' });
    }
  };
  admit('a/', 'a-b/', 'a-b/x', 'a-b/x!', 'a/x');
  assert.throws(() => admit('a/', 'a-b/', 'a-b/X', 'a/X', 'a/x'), refused('tree-invalid'));
  assert.throws(() => admit('A', 'a/', 'a/x'), refused('tree-invalid'));
  assert.throws(() => admit('a', 'a-b/', 'a-b/x', 'a/x'), refused('tree-invalid'));
  assert.throws(() => admit('a/', 'b/', 'b/x', 'ba/y'), refused('tree-invalid'));
});

test('a content of another length than announced is refused', async () => {
  for (const size of [3, 5]) {
    const entry: TreeEntry = { path: 'a', kind: 'file', size, executable: false };
    await assert.rejects(encode([{ entry, content: utf8('four') }]), refused('tree-invalid'));
  }
});

test('a file of 9 GiB has a header that says so', async () => {
  const entry: TreeEntry = { path: 'huge', kind: 'file', size: 9 * 2 ** 30, executable: false };
  const scanner = new TreeScanner({ entry: (found, offset) => assert.deepEqual([found, offset], [entry, 1536]) });
  scanner.push(encodeHeader(entry));
  assert.equal(scanner.skip(), entry.size);
  scanner.push(new Uint8Array(1024));
  scanner.end();
});

test('comparePaths() orders as the UTF-8 bytes do', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), fc.string({ unit: 'grapheme' }), (a, b) => {
      assert.equal(Math.sign(comparePaths(a, b)), Buffer.compare(utf8(a), utf8(b)));
    }),
  );
});

function vectors<T>(name: string): readonly T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/tree/${name}.json`, import.meta.url), 'utf8')) as T[];
}

test('valid vectors', async () => {
  interface Valid {
    readonly why: string;
    readonly entries: readonly (Omit<TreeEntry, 'size'> & { readonly text?: string })[];
    readonly size: number;
    readonly sha256: string;
  }
  for (const { why, entries, size, sha256: digest } of vectors<Valid>('valid')) {
    const items = entries.map(({ text, ...entry }): Item => {
      const content = utf8(text ?? '');
      return { entry: { ...entry, size: content.length }, content };
    });
    const bytes = await encode(items);
    assert.deepEqual([bytes.length, hex(sha256(bytes))], [size, digest], why);
    assert.deepEqual(await decode(bytes), items, why);
  }
});

test('invalid vectors', async () => {
  for (const { why, tar } of vectors<{ readonly why: string; readonly tar: string }>('invalid')) {
    await assert.rejects(decode(fromBase64(tar)), refused('tree-invalid'), why);
  }
});
