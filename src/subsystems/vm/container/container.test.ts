import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, it } from 'node:test';
import type { RunRequest } from '../../../capabilities/vm.ts';
import { entriesFrom, type ImageParts, type LayerEntry, layoutIn, layoutOf, tarOf } from '../../../testing/image.ts';
import { MemoryTrees, SMALL_POLICY, testRuntime } from '../../../testing/runtime-conformance.ts';
import { DEFAULT_LIMITS, type ExecutionLimits } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Trees } from '../process/trees.ts';
import { ContainerRuntime } from './container.ts';

async function make(limits: Partial<ExecutionLimits> = {}) {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-container-'));
  const assets = new MemoryTrees();
  const sandbox = await openProcessSandbox({ directory });
  const small = { treeBytesMax: 64 * 2 ** 20, filesMax: 20_000 };
  const trees = await Trees.open({ assets }, { directory: path.join(directory, 'trees'), ...small });
  const roots = await Trees.open({ assets }, { directory: path.join(directory, 'roots'), ...small });
  return {
    assets,
    directory,
    runtime: new ContainerRuntime({ assets, sandbox, trees, roots }, { limits: { ...DEFAULT_LIMITS, ...limits } }),
    async [Symbol.asyncDispose]() {
      await sandbox[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** The programs of this machine and the libraries that they need, at their own paths. */
function machine(...programs: string[]): LayerEntry[] {
  const libraries = programs.flatMap((program) =>
    [...execFileSync('/usr/bin/ldd', [program], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g)].map(
      ([, file]) => file!,
    ),
  );
  return entriesFrom([...new Set([...programs, ...libraries])]);
}

const PROGRAMS = ['/bin/sh', '/usr/bin/cat', '/usr/bin/env', '/usr/bin/tail', '/usr/bin/yes', '/usr/bin/id'];

const skip = await (async () => {
  await using made = await make();
  const missing = [...PROGRAMS, '/usr/bin/ldd'].find((file) => !existsSync(file));
  if (missing !== undefined) return `this machine has no ${missing}`;
  return (await made.runtime.probe()).reason ?? false;
})();

const base = skip === false ? machine(...PROGRAMS) : [];

/** A package with one image at `image`. */
function packageOf(
  parts: Partial<ImageParts> & { readonly entries?: readonly LayerEntry[] },
): Record<string, Uint8Array> {
  const layers = parts.layers ?? [{ entries: base }, { entries: parts.entries ?? [], compress: 'gzip' as const }];
  return layoutIn('image', { ...parts, layers });
}

testRuntime(
  'container',
  async () => {
    const made = await make();
    const images: Record<string, readonly string[]> = {
      echo: ['cat'],
      seven: ['sh', '-c', 'exit 7'],
      spin: ['sh', '-c', 'while :; do :; done'],
      flood: ['yes'],
      complain: ['sh', '-c', "printf '\\033[31mred' >&2"],
      read: ['/usr/bin/cat'],
      hoard: ['tail', '-n', '1', '/dev/zero'],
      // Its folder is the one variable that a box adds.
      environment: ['env', '-u', 'PWD', 'cat', '/proc/self/environ'],
    };
    const files: Record<string, Uint8Array> = { broken: Buffer.from('not an image') };
    for (const [name, Entrypoint] of Object.entries(images))
      Object.assign(files, layoutIn(name, { layers: [{ entries: base }], config: { Entrypoint } }));
    const names = { ...Object.fromEntries(Object.keys(images).map((name) => [name, name])), broken: 'broken' };
    return {
      runtime: made.runtime,
      trees: made.assets,
      programs: {
        layer: made.assets.add(files),
        ...(names as Record<keyof typeof images | 'broken', string>),
      } as never,
      [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
    };
  },
  { skip },
);

describe('runtime container', { skip }, () => {
  async function run(
    files: Record<string, Uint8Array>,
    more: Partial<RunRequest> = {},
    limits: Partial<ExecutionLimits> = {},
  ) {
    await using made = await make(limits);
    const layer = made.assets.add(files);
    const request = { kind: 'container', layer, entry: 'image', args: [], input: null, policy: SMALL_POLICY } as const;
    return await made.runtime.run({ ...request, ...more });
  }

  it('starts what the image says, as whom, where, and with what', async () => {
    const entries = [
      { path: 'etc/passwd', content: Buffer.from('root:x:0:0::/:/bin/sh\nada:x:1815:1852::/:/bin/sh\n') },
      { path: 'etc/group', content: Buffer.from('engines:x:1843:\n') },
    ];
    const script = 'echo "$(id -u) $(id -g) $PWD $GREETING $1 $2"';
    const config = (more: object) => ({
      Env: ['PATH=/usr/bin:/bin', 'GREETING=hey'],
      WorkingDir: '/work/here',
      Entrypoint: ['sh', '-c', script, 'sh'],
      Cmd: ['by', 'default'],
      ...more,
    });
    const said = async (more: object, args: string[] = []) =>
      (await run(packageOf({ entries, config: config(more) }), { args })).text?.trim();
    assert.equal(await said({ User: 'ada' }), '1815 1852 /work/here hey by default');
    assert.equal(await said({ User: 'ada:engines' }), '1815 1843 /work/here hey by default');
    assert.equal(await said({ User: '1000' }, ['a', 'b c']), '1000 65534 /work/here hey a b c');
    for (const User of ['', 'root', '0', '0:0'])
      assert.equal(await said({ User }), '65534 65534 /work/here hey by default', `root is nobody (${User})`);
    await assert.rejects(said({ User: 'nosuch' }), { code: 'program-invalid', message: /"nosuch" is in no table/ });
  });

  it('says so when there is nothing to start', async () => {
    await assert.rejects(run(packageOf({})), { code: 'program-invalid', message: /names no program/ });
    assert.equal((await run(packageOf({}), { args: ['cat'], input: 5 })).output, 5);
    for (const Entrypoint of [['nosuch'], ['/etc'], ['/text'], ['./text']])
      await assert.rejects(
        run(packageOf({ config: { Entrypoint }, entries: [{ path: 'text', content: Buffer.from('x'), mode: 0o644 }] })),
        { code: 'program-invalid', message: /has no program/ },
      );
  });

  it('starts a program of the package in the image', async () => {
    const files = { ...packageOf({ config: { Entrypoint: ['sh'] } }), 'main.sh': Buffer.from('echo "[\\"$1\\"]"') };
    assert.deepEqual((await run(files, { args: ['/package/main.sh', 'hey'] })).output, ['hey']);
  });

  it('reads OCI archives and archives of `docker save`', async () => {
    const layout = layoutOf({ layers: [{ entries: base, compress: 'zstd' }], config: { Cmd: ['cat'] } });
    const archive = tarOf(Object.entries(layout).map(([name, content]) => ({ path: `./${name}`, content })));
    assert.equal((await run({ 'image.tar': archive }, { entry: 'image.tar', input: 7 })).output, 7);

    const plain = layoutOf({ layers: [{ entries: base }], config: { Cmd: ['cat'] } });
    const manifest = JSON.parse(Buffer.from(Object.values(plain).at(-1)!).toString()) as {
      config: { digest: string };
      layers: { digest: string }[];
    };
    const bytes = (digest: string) => plain[`blobs/sha256/${digest.slice(7)}`]!;
    const name = `${manifest.config.digest.slice(7)}.json`;
    const saved = (config: Uint8Array) =>
      tarOf([
        { path: 'aa/layer.tar', content: bytes(manifest.layers[0]!.digest) },
        { path: 'bb/layer.tar', flag: '2', target: '../aa/layer.tar' },
        { path: name, content: config },
        { path: 'manifest.json', content: Buffer.from(JSON.stringify([{ Config: name, Layers: ['bb/layer.tar'] }])) },
      ]);
    const good = saved(bytes(manifest.config.digest));
    assert.equal((await run({ 'image.tar': good }, { entry: 'image.tar', input: 8 })).output, 8);
    const bad = saved(Buffer.concat([bytes(manifest.config.digest), Buffer.from(' ')]));
    await assert.rejects(run({ 'image.tar': bad }, { entry: 'image.tar' }), { code: 'program-invalid' });
    await assert.rejects(run({ 'image.tar': good.subarray(0, 5_000) }, { entry: 'image.tar' }), {
      code: 'program-invalid',
      message: /cut off/,
    });
  });

  it('refuses an image in which any byte was changed, before anything of it is shown', async () => {
    for (const compress of ['gzip', 'zstd', undefined] as const) {
      const good = packageOf({
        layers: [{ entries: base, ...(compress === undefined ? {} : { compress }) }],
        config: { Cmd: ['cat'] },
      });
      for (const name of Object.keys(good).filter((one) => one.includes('blobs'))) {
        const bytes = Buffer.from(good[name]!);
        bytes[bytes.length >> 1]! ^= 1;
        await assert.rejects(run({ ...good, [name]: bytes }), { code: 'program-invalid' }, `${name} of ${compress}`);
        await assert.rejects(run({ ...good, [name]: bytes.subarray(1) }), { code: 'program-invalid' }, name);
        const { [name]: _, ...rest } = good;
        await assert.rejects(run(rest), { code: 'program-invalid', message: /lacks/ }, name);
      }
    }
  });

  it('refuses an image for another machine', async () => {
    const layout = packageOf({ config: { Cmd: ['cat'] } });
    const index = Buffer.from(layout['image/index.json']!).toString();
    const other = index.replace(/"architecture":"\w+"/, '"architecture":"s390x"');
    await assert.rejects(run({ ...layout, 'image/index.json': Buffer.from(other) }), {
      code: 'program-invalid',
      message: /is not for linux on/,
    });
  });

  it('merges layers: whiteouts, opaque folders, links on the way, hard links, no devices, plain modes', async () => {
    await using made = await make();
    const text = (name: string, content = name): LayerEntry => ({
      path: name,
      content: Buffer.from(content),
      mode: 0o640,
    });
    const layers = [
      {
        entries: [
          ...base,
          text('gone/a'),
          text('gone/b'),
          text('hidden/old'),
          { path: 'link', flag: '2', target: '/real/folder' },
          text('real/folder/there'),
          { path: 'setuid', content: Buffer.from('x'), mode: 0o4755 },
          { path: 'dev/disk', flag: '4' },
          { path: 'pipe', flag: '6' },
          text(`long/${'n'.repeat(120)}`),
          { path: 'out', flag: '2', target: '../../../../etc' },
        ],
      },
      {
        entries: [
          text('gone/.wh.a', ''),
          // The whiteout is of what lies below, wherever it stands in its own layer.
          text('gone/b', 'again'),
          text('gone/.wh.b', ''),
          text('hidden/new'),
          text('hidden/.wh..wh..opq', ''),
          text('link/through'),
          { path: 'hard', flag: '1', target: 'link/through' },
          { path: './hard2', flag: '1', target: './hard' },
          text('out/inside'),
          text('.wh..wh.plnk', ''),
        ],
        compress: 'gzip' as const,
      },
    ];
    const config = { Entrypoint: ['sh', '-c', 'cat /hard2 /link/through /out/inside'] };
    const layer = made.assets.add(layoutIn('image', { layers, config }));
    const request = { kind: 'container', layer, entry: 'image', args: [], input: null, policy: SMALL_POLICY } as const;
    const result = await made.runtime.run(request);
    assert.equal(result.text, 'link/throughlink/throughout/inside', result.stderr);

    const roots = path.join(made.directory, 'roots');
    const unpacked = (await readdir(roots)).filter((name) => name !== 'boot');
    assert.equal(unpacked.length, 1, 'nothing but the image is left');
    const root = path.join(roots, unpacked[0]!, 'root');
    const names = (await readdir(root, { recursive: true })).filter(
      (name) => !base.some((one) => one.path.startsWith(name)),
    );
    assert.deepEqual(
      names.sort(),
      [
        ...['dev', 'etc', 'etc/inside', 'gone', 'gone/b', 'hard', 'hard2', 'hidden', 'hidden/new', 'link', 'long'],
        ...[
          `long/${'n'.repeat(120)}`,
          'out',
          'real',
          'real/folder',
          'real/folder/there',
          'real/folder/through',
          'setuid',
        ],
      ].filter((name) => name !== 'dev'),
    );
    assert.equal(await readFile(path.join(root, 'gone/b'), 'utf8'), 'again');
    const [hard, through, setuid] = await Promise.all(
      ['hard', 'real/folder/through', 'setuid'].map((name) => stat(path.join(root, name))),
    );
    assert.equal(hard!.ino, through!.ino);
    assert.deepEqual([setuid!.mode & 0o7777, hard!.mode & 0o7777, setuid!.uid], [0o755, 0o644, process.getuid!()]);
    assert.equal(existsSync('/etc/inside'), false);

    const before = await stat(root);
    assert.equal((await made.runtime.run({ ...request, args: [] })).exitCode, 0);
    assert.equal((await stat(root)).ino, before.ino, 'unpacked once');
  });

  it('refuses archives with names without end, which are small while they are packed', async () => {
    const deep = Array.from({ length: 12 }, () => 'n'.repeat(200)).join('/');
    for (const entries of [
      Array.from({ length: 2_501 }, () => ({ path: 'same' })),
      Array.from({ length: 400 }, (_, index) => ({ path: `${index}${deep}` })),
    ]) {
      const many = packageOf({ layers: [{ entries, compress: 'gzip' }] });
      assert.ok(Object.values(many).reduce((sum, { length }) => sum + length, 0) < 50_000);
      for (const files of [many, { image: tarOf(entries) }])
        await assert.rejects(run(files, {}, { filesMax: 1_000 }), {
          code: 'limit-exceeded',
          message: /may name at most 2500 files/,
        });
    }
  });

  it('refuses archives that lead out, lie, or never end', async () => {
    const one = (entry: LayerEntry) => packageOf({ layers: [{ entries: [...base, entry] }], config: { Cmd: ['cat'] } });
    for (const [entry, message] of [
      [{ path: '../x' }, /impossible name/],
      [{ path: 'a/../../x' }, /impossible name/],
      [{ path: `${'d/'.repeat(200)}x` }, /impossible name/],
      [{ path: 'hard', flag: '1', target: '../../etc/passwd' }, /impossible name/],
      [{ path: 'hard', flag: '1', target: 'no/such' }, /is to no file/],
      [{ path: 'usr/bin/cat/x' }, /should be/],
      [{ path: 'empty', flag: '2' }, /leads nowhere/],
      [{ path: 'sparse', flag: 'S' }, /sparse/],
      [{ path: 'x', flag: 'x', content: Buffer.from('12 path=/a') }, /damaged extended header/],
    ] as const)
      await assert.rejects(run(one(entry)), { code: 'program-invalid', message }, JSON.stringify(entry).slice(0, 80));
    const circle = [
      { path: 'a', flag: '2', target: 'b' },
      { path: 'b', flag: '2', target: 'a' },
      { path: 'a/x', content: Buffer.from('') },
    ];
    await assert.rejects(run(packageOf({ layers: [{ entries: circle }], config: { Cmd: ['cat'] } })), {
      code: 'program-invalid',
      message: /in circles/,
    });
    const bomb = [{ path: 'zeros', content: Buffer.alloc(80 * 2 ** 20) }];
    await assert.rejects(run(packageOf({ layers: [{ entries: bomb, compress: 'zstd' }], config: { Cmd: ['cat'] } })), {
      code: 'limit-exceeded',
    });
  });
});
