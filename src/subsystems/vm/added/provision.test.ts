import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFileSync, chmodSync, cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdtemp, readdir, readlink, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
import { parseManifest } from '../../../wire/manifest-text.ts';
import { TreeScanner } from '../../../wire/tree.ts';
import { JULIA } from '../julia/image.ts';
import { AddedRuntime } from './added-runtime.ts';
import { type AptSource, parseLines, parseStanzas } from './apt.ts';
import { packImage } from './image-package.ts';
import { addImage, findImage, type Recipe, removeImage, removeUnfinished } from './provision.ts';

describe('the apt sources of a machine', () => {
  const signedBy = '/usr/share/keyrings/archive.gpg';

  it('are read from stanzas', () => {
    const text = `# comment\nTypes: deb deb-src\nURIs: http://mirror.invalid/debian http://other.invalid/debian\nSuites: bookworm\n  bookworm-updates\nComponents: main contrib\nSigned-By: ${signedBy}\n\nTypes: deb\nURIs: http://mirror.invalid/x\nSuites: stable\nComponents: main\nEnabled: no\n`;
    const suites = ['bookworm', 'bookworm-updates'];
    assert.deepEqual(parseStanzas(text), [
      { uri: 'http://mirror.invalid/debian', suites, signedBy },
      { uri: 'http://other.invalid/debian', suites, signedBy },
    ]);
  });

  it('are read from lines', () => {
    const text = `# deb http://no.invalid/ a main\ndeb [arch=amd64 signed-by=${signedBy}] http://mirror.invalid/debian bullseye main non-free # why\ndeb-src http://mirror.invalid/debian bullseye main\ndeb http://mirror.invalid/flat ./\n`;
    assert.deepEqual(parseLines(text), [{ uri: 'http://mirror.invalid/debian', suites: ['bullseye'], signedBy }]);
  });

  it('are left out when they are not plain', () => {
    for (const [uri, suite, key] of [
      ['http://mirror.invalid/"; x', 'stable', signedBy],
      ['ftp://mirror.invalid/', 'stable', signedBy],
      ['http://mirror.invalid/', '../stable', signedBy],
      ['http://mirror.invalid/', 'stable', '-----BEGIN'],
    ] as const)
      assert.deepEqual(
        parseStanzas(`Types: deb\nURIs: ${uri}\nSuites: ${suite}\nComponents: main\nSigned-By: ${key}`)
          .filter((source) => source.uri === uri)
          .flatMap((source) => source.suites),
        [],
        `${uri} ${suite} ${key}`,
      );
  });
});

const lacking = ['apt-get', 'dpkg-deb', 'gpg', 'gpgv'].find(
  (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).error !== undefined,
);

describe('adding Julia', { skip: lacking === undefined ? false : `this machine has no ${lacking}` }, () => {
  let folder: string;
  let mirror: Mirror;
  let images: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'hypermesh-julia-'));
    mirror = makeMirror(join(folder, 'mirror'), ['julia', 'libjulia1']);
    images = join(folder, 'images');
    mkdirSync(images);
  });
  after(() => rm(folder, { recursive: true, force: true }));

  it('unpacks verified packages, runs none of their scripts, and seals what is needed', async () => {
    assert.equal(await findImage(images, 'julia'), null);
    const steps = new Set<string>();
    const image = await addImage(images, JULIA, {
      sources: [mirror.source],
      onProgress: ({ step }) => steps.add(step),
    });
    assert.deepEqual([...steps], ['index', 'download', 'unpack', 'seal']);
    assert.deepEqual([image.version, image.suite], ['9.9-1', 'old']);
    assert.deepEqual(
      image.packages.map(({ name, digest }) => [name, digest]),
      mirror.packages.map((file) => [basename(file).split('_')[0], `sha256:${sha256(readFileSync(file))}`]),
    );
    const names = await readdir(image.root, { recursive: true });
    const wanted = ['usr', 'usr/bin', 'usr/bin/julia', 'usr/lib', 'usr/lib/libjulia1', 'usr/lib/julia', 'usr/share'];
    assert.deepEqual(names.sort(), wanted.sort());
    const { mode, mtimeMs } = await stat(join(image.root, 'usr/lib/julia'));
    assert.deepEqual([mode & 0o7777, mtimeMs], [0o755, Date.parse('2000-01-01T00:00:00Z')]);
    assert.equal((await readdir(folder)).includes('script-ran'), false);
    assert.deepEqual(await readdir(images), [basename(join(image.root, '..'))]);

    assert.deepEqual(await findImage(images, 'julia'), image);
    assert.deepEqual(await addImage(images, JULIA, { sources: [] }), image, 'what is there is not made again');
    assert.equal(await removeImage(images, 'julia'), true);
    assert.deepEqual([await findImage(images, 'julia'), await readdir(images)], [null, []]);
    const again = await addImage(images, JULIA, { sources: [mirror.source] });
    assert.equal(again.digest, image.digest, 'the same packages give the same digest');
    await removeImage(images, 'julia');
  });

  it('is seen to be damaged, whatever it is that changed, and made anew', async () => {
    const options = { sources: [mirror.source] };
    const { root, digest } = await addImage(images, JULIA, options);
    const image = join(root, '..');
    const program = join(root, 'usr/bin/julia');
    const kept = join(folder, 'kept');
    cpSync(image, kept, { recursive: true });
    const damages: readonly (() => unknown)[] = [
      () => appendFileSync(program, 'x'),
      () => rmSync(program),
      () => chmodSync(program, 0o644),
      () => writeFileSync(join(root, 'usr/lib/added'), ''),
      () => spawnSync('mkfifo', [join(root, 'usr/lib/pipe')]),
      () => rmSync(root, { recursive: true }),
      () => writeFileSync(join(image, 'image.json'), '{'),
      () => rmSync(join(image, 'image.json')),
    ];
    for (const damage of damages) {
      damage();
      const damaged = new AddedRuntime(JULIA, images, () => {});
      for (const use of [() => damaged.installed(), () => damaged.use(async () => 'used')])
        await assert.rejects(use(), { code: 'runtime-unavailable', message: /damaged.*`hypermesh runtime add julia`/ });
      rmSync(image, { recursive: true });
      cpSync(kept, image, { recursive: true });
      assert.equal((await new AddedRuntime(JULIA, images, () => {}).installed())?.digest, digest, String(damage));
    }
    appendFileSync(program, 'x');
    const added = new AddedRuntime(JULIA, images, () => {});
    await added.add(options);
    assert.equal((await added.installed())?.digest, digest);
    await removeImage(images, 'julia');
  });

  it('puts several packages and links into one image, each package once', async () => {
    const recipe: Recipe = {
      runtime: 'vm',
      title: 'a test',
      packages: ['libjulia1', 'julia'],
      suites: ['old'],
      kept: ['usr'],
      links: { 'usr/bin/run': 'julia' },
    };
    const image = await addImage(images, recipe, { sources: [mirror.source] });
    assert.deepEqual([image.runtime, image.packages.map(({ name }) => name)], ['vm', ['julia', 'libjulia1']]);
    assert.equal(await readlink(join(image.root, 'usr/bin/run')), 'julia');
    assert.equal(await findImage(images, 'julia'), null);
    await removeImage(images, 'vm');
  });

  it('refuses what is not signed by the key of the source, and what differs from what was signed', async () => {
    const other = makeMirror(join(folder, 'other'), ['julia', 'libjulia1']);
    const forged = { ...mirror.source, signedBy: other.source.signedBy };
    await assert.rejects(addImage(images, JULIA, { sources: [forged] }), {
      code: 'runtime-unavailable',
      message: /signed/,
    });
    appendFileSync(other.packages[0]!, 'x');
    await assert.rejects(addImage(images, JULIA, { sources: [other.source] }), {
      code: 'runtime-unavailable',
      message: /unexpected size|Hash Sum mismatch/,
    });
    assert.deepEqual(await readdir(images), []);
  });

  it('says which source has no Julia, and when there is none at all', async () => {
    const empty = makeMirror(join(folder, 'empty'), ['libjulia1']);
    await assert.rejects(addImage(images, JULIA, { sources: [empty.source] }), {
      code: 'runtime-unavailable',
      message: /old: apt-get said "E: Unable to locate package julia"; bullseye: /,
    });
    await assert.rejects(addImage(images, JULIA, { sources: [] }), {
      code: 'runtime-unavailable',
      message: /no apt sources/,
    });
  });

  it('travels as a package, and is what it was when it comes out', async () => {
    const image = await addImage(images, JULIA, { sources: [mirror.source] });
    const work = join(folder, 'work');
    mkdirSync(work);
    const packed = () => collectTree(packImage(image, { program: '/usr/bin/julia', work, prefix: '.new-' }));
    const files = await packed();
    assert.deepEqual(await packed(), files, 'the same image gives the same package');
    assert.deepEqual(await readdir(work), []);
    const yaml = Buffer.from(files['catalog.yaml']!).toString();
    const manifest = parseManifest(yaml);
    assert.deepEqual([manifest.type, manifest.image], ['container', 'image']);
    assert.match(yaml, new RegExp(image.digest));

    const assets = new MemoryTrees();
    const elsewhere = join(folder, 'elsewhere');
    mkdirSync(elsewhere);
    const added = await addImage(elsewhere, JULIA, { from: { assets, layer: assets.add(files) } });
    assert.deepEqual({ ...added, addedAtMs: 0, root: '' }, { ...image, addedAtMs: 0, root: '' });
    assert.equal(readFileSync(join(added.root, 'usr/lib/julia'), 'utf8'), 'julia');
    assert.deepEqual(await findImage(elsewhere, 'julia'), added);
    await removeImage(elsewhere, 'julia');

    const record = JSON.parse(Buffer.from(files['runtime.json']!).toString()) as object;
    const other = JSON.stringify({ ...record, digest: `sha256:${'0'.repeat(64)}` });
    const blobs = Object.keys(files).filter((name) => name.includes('blobs'));
    const layerName = blobs.reduce((a, b) => (files[a]!.length > files[b]!.length ? a : b));
    const damaged = Buffer.from(files[layerName]!);
    damaged[damaged.length >> 1]! ^= 1;
    const { 'runtime.json': _, ...foreign } = files;
    for (const [bad, message] of [
      [{ ...files, 'runtime.json': Buffer.from(other) }, /its record says/],
      [{ ...files, [layerName]: damaged }, /cannot be run/],
      [foreign, /not the image of a language/],
      [{ ...files, 'runtime.json': Buffer.from('{') }, /is damaged/],
    ] as const)
      await assert.rejects(addImage(elsewhere, JULIA, { from: { assets, layer: assets.add(bad) } }), {
        code: 'program-invalid',
        message,
      });
    assert.deepEqual(await readdir(elsewhere), []);
    await removeImage(images, 'julia');
  });

  it('leaves nothing behind when the caller gives up, and heals what a crash left', async () => {
    const controller = new AbortController();
    const adding = addImage(images, JULIA, {
      sources: [mirror.source],
      signal: controller.signal,
      onProgress: ({ step }) => step === 'download' && controller.abort(),
    });
    await assert.rejects(adding, { code: 'cancelled' });
    assert.deepEqual(await readdir(images), []);
    mkdirSync(join(images, '.new-abc', 'image', 'root'), { recursive: true });
    await removeUnfinished(images);
    assert.deepEqual(await readdir(images), []);
  });
});

/** The files of a canonical tree. */
async function collectTree(tree: AsyncIterable<Uint8Array>): Promise<Record<string, Uint8Array>> {
  const files: Record<string, Uint8Array[]> = {};
  let current = '';
  const scanner = new TreeScanner({
    entry({ path, kind }) {
      current = path;
      if (kind === 'file') files[path] = [];
    },
    content: (bytes) => files[current]!.push(bytes.slice()),
  });
  for await (const piece of tree) scanner.push(piece);
  scanner.end();
  return Object.fromEntries(Object.entries(files).map(([name, pieces]) => [name, Buffer.concat(pieces)]));
}

interface Mirror {
  readonly source: AptSource;
  /** Files, in order of their names. */
  readonly packages: readonly string[];
}

/** A signed mirror on this disk with packages of that name; each has a script that tells when it runs. */
function makeMirror(folder: string, names: readonly string[]): Mirror {
  const architecture = run('dpkg', ['--print-architecture']).trim();
  const index = names.map((name) => {
    const tree = join(folder, 'tree', name);
    for (const path of ['DEBIAN', 'usr/bin', 'usr/lib', `usr/share/doc/${name}`])
      mkdirSync(join(tree, path), { recursive: true });
    const depends = name === 'julia' ? 'Depends: libjulia1\n' : '';
    const control = `Package: ${name}\nVersion: 9.9-1\nArchitecture: ${architecture}\nMaintainer: nobody <nobody@example.invalid>\n${depends}Description: test\n`;
    writeFileSync(join(tree, 'DEBIAN/control'), control);
    const script = `#!/bin/sh\ntouch ${join(folder, '..', 'script-ran')}\n`;
    for (const hook of ['preinst', 'postinst']) writeFileSync(join(tree, 'DEBIAN', hook), script, { mode: 0o755 });
    writeFileSync(join(tree, `usr/share/doc/${name}/copyright`), 'none');
    writeFileSync(join(tree, 'usr/lib', name), name);
    run('chmod', ['4755', join(tree, 'usr/lib', name)]);
    writeFileSync(join(tree, 'usr/bin', name), name, { mode: 0o755 });
    const path = `pool/${name}_9.9-1_${architecture}.deb`;
    mkdirSync(join(folder, 'pool'), { recursive: true });
    run('dpkg-deb', ['--root-owner-group', '--build', tree, join(folder, path)]);
    const bytes = readFileSync(join(folder, path));
    return { path, text: `${control}Filename: ${path}\nSize: ${bytes.length}\nSHA256: ${sha256(bytes)}\n` };
  });
  const inner = `main/binary-${architecture}/Packages`;
  const content = index.map(({ text }) => text).join('\n');
  mkdirSync(join(folder, 'dists/old', inner, '..'), { recursive: true });
  writeFileSync(join(folder, 'dists/old', inner), content);
  const release = `Suite: old\nCodename: old\nComponents: main\nArchitectures: ${architecture}\nDate: ${new Date().toUTCString()}\nSHA256:\n ${sha256(Buffer.from(content))} ${content.length} ${inner}\n`;
  writeFileSync(join(folder, 'Release'), release);
  const home = join(folder, 'gpg');
  mkdirSync(home, { mode: 0o700 });
  const gpg = (...args: string[]) =>
    run('gpg', ['--homedir', home, '--batch', '--quiet', '--passphrase', '', '--pinentry-mode', 'loopback', ...args]);
  gpg('--quick-gen-key', 'mirror@example.invalid', 'ed25519', 'sign', 'never');
  gpg('--output', join(folder, 'key.gpg'), '--export');
  gpg('--output', join(folder, 'dists/old/InRelease'), '--clearsign', join(folder, 'Release'));
  run('gpgconf', ['--homedir', home, '--kill', 'all']);
  rmSync(join(folder, 'tree'), { recursive: true });
  return {
    source: { uri: `file:${folder}`, suites: ['old', 'old-updates'], signedBy: join(folder, 'key.gpg') },
    packages: index.map(({ path }) => join(folder, path)).sort(),
  };
}

function run(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  assert.equal(status, 0, `${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
