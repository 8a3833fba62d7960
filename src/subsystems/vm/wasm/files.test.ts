import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { ERRNO, Errno, Files, Mounts, type TmpFile } from './files.ts';

const MOUNTS = [
  {
    at: '/package',
    entries: [
      { path: 'data' },
      { path: 'data/real.txt', size: 4 },
      { path: 'data/good', target: 'real.txt' },
      { path: 'data/up', target: '../data/good' },
      { path: 'data/folder', target: '.' },
      { path: 'data/out', target: '../../packages' },
      { path: 'data/etc', target: '../../../etc/passwd' },
      { path: 'data/absolute', target: '/etc/passwd' },
      { path: 'data/loop', target: 'loop' },
      { path: 'data/nowhere', target: 'gone' },
    ],
  },
  { at: '/packages/ada/words', entries: [{ path: 'a/b/c.txt', size: 1 }] },
];

function open(tmpBytes = 10_000): Files {
  return new Files(new Mounts(MOUNTS), tmpBytes, (mount, path) => Buffer.from(`${mount}:${path}`));
}

function errnoOf(action: () => unknown): number {
  try {
    action();
    return ERRNO.success;
  } catch (error) {
    if (error instanceof Errno) return error.errno;
    throw error;
  }
}

describe('files of a box', () => {
  it('leads paths and links to what is inside, and nowhere else', () => {
    const files = open();
    const cases: [string, string | number][] = [
      ['package/data/real.txt', 'package-file'],
      ['package/data/good', 'package-file'],
      ['package/data/up', 'package-file'],
      ['package/data/folder/folder/good', 'package-file'],
      ['package/data/../data/./good', 'package-file'],
      ['packages/ada/words/a/b/c.txt', 'package-file'],
      ['packages/ada', 'directory'],
      ['tmp', 'directory'],
      ['.', 'directory'],
      ['package/..', 'directory'],
      ['/package/data/real.txt', ERRNO.notCapable],
      ['..', ERRNO.notCapable],
      ['../etc/passwd', ERRNO.notCapable],
      ['package/../../etc/passwd', ERRNO.notCapable],
      ['package/data/out', ERRNO.notCapable],
      ['package/data/etc', ERRNO.notCapable],
      ['package/data/absolute', ERRNO.notCapable],
      ['package/data\0/real.txt', ERRNO.notCapable],
      ['package/data/loop', ERRNO.loop],
      ['package/data/real.txt/x', ERRNO.notDirectory],
      ['package/data/real.txt/', ERRNO.notDirectory],
      ['package/gone/x', ERRNO.noEntry],
      ['', ERRNO.noEntry],
      ['x'.repeat(256), ERRNO.nameTooLong],
      ['x/'.repeat(3_000), ERRNO.nameTooLong],
    ];
    for (const [path, expected] of cases) {
      let found: string | number | undefined;
      const errno = errnoOf(() => {
        found = files.resolve(files.root, path, true).node?.kind;
      });
      assert.equal(errno === 0 ? found : errno, expected, JSON.stringify(path.slice(0, 60)));
    }
    assert.equal(files.resolve(files.root, 'package/data/etc', false).node?.kind, 'link');
    assert.equal(files.resolve(files.root, 'package/data/nowhere', true).node, undefined);
  });

  it('does not climb over the folder that a program opened', () => {
    const files = open();
    const { node } = files.resolve(files.root, 'package/data', true);
    assert.ok(node?.kind === 'directory');
    assert.equal(
      errnoOf(() => files.resolve(node, '../data/real.txt', true)),
      ERRNO.notCapable,
    );
    assert.equal(files.resolve(node, 'good', true).node?.kind, 'package-file');
  });

  it('never throws anything but an error number, whatever the path', () => {
    const name = fc.constantFrom(
      'package',
      'data',
      'good',
      'up',
      'folder',
      'out',
      'etc',
      'loop',
      'tmp',
      '..',
      '.',
      '',
      'x',
    );
    fc.assert(
      fc.property(fc.array(name, { maxLength: 12 }), fc.boolean(), (names, follow) => {
        const files = open();
        errnoOf(() => files.resolve(files.root, names.join('/'), follow));
      }),
    );
  });

  it('writes only under /tmp', () => {
    const files = open();
    const at = (path: string) => files.resolve(files.root, path, false);
    assert.equal(
      errnoOf(() => files.createFile(at('package/new'))),
      ERRNO.readOnly,
    );
    assert.equal(
      errnoOf(() => files.createFile(at('new'))),
      ERRNO.readOnly,
    );
    assert.equal(
      errnoOf(() => files.removeFile(at('package/data/real.txt'))),
      ERRNO.readOnly,
    );
    assert.equal(
      errnoOf(() => files.removeDirectory(at('tmp'))),
      ERRNO.readOnly,
    );
    files.createDirectory(at('tmp/a'));
    files.createFile(at('tmp/a/f'));
    assert.equal(
      errnoOf(() => files.removeDirectory(at('tmp/a'))),
      ERRNO.notEmpty,
    );
    assert.equal(
      errnoOf(() => files.rename(at('tmp/a'), at('tmp/a/inside'))),
      ERRNO.invalid,
    );
    assert.equal(
      errnoOf(() => files.rename(at('tmp/a/f'), at('package/f'))),
      ERRNO.readOnly,
    );
    assert.equal(
      errnoOf(() => files.rename(at('package/data/real.txt'), at('tmp/f'))),
      ERRNO.readOnly,
    );
    files.rename(at('tmp/a/f'), at('tmp/g'));
    assert.deepEqual([at('tmp/a/f').node, at('tmp/g').node?.kind], [undefined, 'tmp-file']);
  });

  it('holds no more than its size, whatever is written, cut and removed', () => {
    const step = fc.record({
      file: fc.nat(3),
      act: fc.constantFrom('write', 'cut', 'remove'),
      at: fc.nat(12_000),
      size: fc.nat(6_000),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const files = open(10_000);
        const model = new Map<string, number>();
        for (const { file, act, at, size } of steps) {
          const path = `tmp/${file}`;
          const place = files.resolve(files.root, path, false);
          errnoOf(() => {
            if (act === 'remove') {
              files.removeFile(place);
              model.delete(path);
              return;
            }
            const node = (place.node ?? files.createFile(place)) as TmpFile;
            model.set(path, node.size);
            if (act === 'write') files.write(node, at, new Uint8Array(size).fill(7));
            else files.resize(node, at);
            model.set(path, node.size);
          });
        }
        const total = [...model.values()].reduce((sum, size) => sum + size, 0);
        assert.ok(total <= 10_000 && files.tmpPeak <= 10_000);
      }),
    );
  });

  it('gives back what was cut and removed', () => {
    const files = open(5_000);
    const at = () => files.resolve(files.root, 'tmp/f', false);
    for (let round = 0; round < 5; round++) {
      const file = files.createFile(at());
      files.write(file, 0, new Uint8Array(4_000));
      assert.equal(
        errnoOf(() => files.write(file, 4_000, new Uint8Array(1_000))),
        ERRNO.noSpace,
      );
      files.resize(file, 10);
      files.write(file, 10, new Uint8Array(3_000));
      assert.deepEqual(files.read(file, 3_005, 100).length, 5);
      files.removeFile(at());
    }
    const open_ = files.createFile(at());
    files.opened(open_);
    files.write(open_, 0, new Uint8Array(4_000));
    files.removeFile(at());
    assert.equal(
      errnoOf(() => files.write(files.createFile(at()), 0, new Uint8Array(4_000))),
      ERRNO.noSpace,
    );
    files.closed(open_);
    const again = at().node as TmpFile;
    assert.equal(
      errnoOf(() => files.write(again, 0, new Uint8Array(4_000))),
      ERRNO.success,
    );
  });
});
