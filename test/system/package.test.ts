import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { examples } from '../examples.ts';
import { type Folder, freshHome, PROJECT, SMALL_NETWORK, temporaryFolder } from './support.ts';

const run = promisify(execFile);

interface PackageJson {
  readonly scripts?: unknown;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
  readonly bundleDependencies: readonly string[];
}

/** A project that has the tarball installed as npm lays it out, and nothing of ours in reach that only development needs. */
let folder: Folder;
let consumer: string;
let installed: string;

before(async () => {
  folder = await temporaryFolder();
  const built = join(folder.path, 'package');
  await run(process.execPath, [join(PROJECT, 'scripts', 'build.ts'), built]);
  await run('npm', ['pack', '--pack-destination', folder.path, built], { cwd: folder.path });
  const [tarball] = (await readdir(folder.path)).filter((name) => name.endsWith('.tgz'));
  consumer = join(folder.path, 'consumer');
  installed = join(consumer, 'node_modules', 'hypermesh');
  await mkdir(installed, { recursive: true });
  await run('tar', ['-xzf', join(folder.path, tarball!), '--strip-components=1', '-C', installed]);

  const manifest = await packageJson();
  const here = await readdir(join(PROJECT, 'node_modules'));
  const needed = [
    ...Object.keys(manifest.dependencies).filter((name) => !manifest.bundleDependencies.includes(name)),
    ...Object.keys(manifest.optionalDependencies).filter((name) => here.includes(name)),
    // What a TypeScript project of today has beside it.
    '@types/node',
  ];
  for (const name of needed) {
    const link = join(consumer, 'node_modules', name);
    await mkdir(join(link, '..'), { recursive: true });
    await symlink(join(PROJECT, 'node_modules', name), link, 'junction');
  }
  await writeFile(join(consumer, 'package.json'), '{ "type": "module" }');
});

after(() => folder[Symbol.asyncDispose]());

async function packageJson(): Promise<PackageJson> {
  return JSON.parse(await readFile(join(installed, 'package.json'), 'utf8')) as PackageJson;
}

test('the package pins its dependencies, and installing it runs no script', async () => {
  const manifest = await packageJson();
  for (const [name, version] of Object.entries({ ...manifest.dependencies, ...manifest.optionalDependencies }))
    assert.match(version, /^\d+\.\d+\.\d+$/, name);
  assert.equal(manifest.scripts, undefined);
  const lock = JSON.parse(await readFile(join(PROJECT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; hasInstallScript?: boolean }>;
  };
  const scripted = Object.entries(lock.packages).filter(([, entry]) => entry.hasInstallScript && !entry.dev);
  assert.deepEqual(
    scripted.map(([path]) => path.slice('node_modules/'.length)),
    manifest.bundleDependencies,
    'a dependency that runs a script is brought along without it',
  );
  for (const name of manifest.bundleDependencies) {
    const bundled = JSON.parse(await readFile(join(installed, 'node_modules', name, 'package.json'), 'utf8')) as object;
    assert.deepEqual(Object.keys(bundled), ['name', 'version', 'license', 'repository']);
  }
});

test('the package holds what is used, and nothing that only development needs', async () => {
  const files = await readdir(installed, { recursive: true });
  assert.deepEqual(
    files.filter((path) => /\.test\.|[\\/]testing[\\/]|(?<!\.d)\.ts$|\.map$/.test(path)),
    [],
  );
});

test('a program that imports the package publishes, installs and runs, and loads an extension in both ways', async () => {
  await cp(join(PROJECT, 'examples', 'extensions', 'dataset'), join(consumer, 'dataset'), { recursive: true });
  await writeFile(
    join(consumer, 'program.js'),
    `
import { resolve } from 'node:path';
import { HyperMesh, HyperMeshError, verifyBundleOffline } from 'hypermesh';
import { defineExtension } from 'hypermesh/extension';

await using hypermesh = await HyperMesh.create({ home: resolve('home'), network: ${JSON.stringify(SMALL_NETWORK)} });
const catalog = await hypermesh.loadExtension('catalog');
const staged = await hypermesh.stageFolder('node_modules/hypermesh/templates/wasm');
const { name, version } = await catalog.publishPackage(await catalog.signPackage(staged));
const { installed } = await catalog.install([name], { root: resolve('here') });
const { output } = await catalog.executePackage(name + '@' + version, { name: 'Ada' });
const bundle = await catalog.bundle(name);
const { checks } = await verifyBundleOffline(bundle, { network: bundle.network.id });
const { extensions } = hypermesh.node;
const states = [];
for (const mode of ['in-process', 'cell']) {
  const grants = ['assets', 'monitoring', 'state'];
  const dataset = await hypermesh.loadExtension({ folder: 'dataset' }, { grants, mode });
  states.push((await dataset.status()).state);
  await extensions.unload('dataset');
}
const refused = await catalog.resolve('nobody/nothing').catch((error) => error);
console.log(JSON.stringify({
  installed: installed.length, output, checks: checks.length, states,
  code: refused instanceof HyperMeshError && refused.code, face: typeof defineExtension,
}));
`,
  );
  const { stdout } = await run(process.execPath, ['program.js'], { cwd: consumer });
  assert.deepEqual(JSON.parse(stdout), {
    installed: 1,
    output: { received: { name: 'Ada' } },
    checks: 9,
    states: ['running', 'running'],
    code: 'package-not-found',
    face: 'function',
  });
});

test('the command of the package starts a node, publishes, runs, verifies and stops', async () => {
  await using fresh = await freshHome();
  const hypermesh = async (...args: string[]): Promise<Record<string, unknown>> => {
    const { stdout } = await run(
      process.execPath,
      [join(installed, 'bin', 'hypermesh.js'), ...args, '--json', '--home', fresh.home],
      { cwd: consumer },
    );
    return JSON.parse(stdout) as Record<string, unknown>;
  };
  await hypermesh('new', 'wasm', 'greeter', '--name', 'ada/greeter');
  const { http } = await hypermesh('up', '--detach');
  try {
    assert.equal((await hypermesh('publish', 'greeter', '--bundle', 'greeter.bundle'))['name'], 'ada/greeter');
    const { output } = await hypermesh('run', 'ada/greeter', '--input', '{"name":"Ada"}');
    assert.deepEqual(output, { received: { name: 'Ada' } });
    assert.equal((await hypermesh('verify', 'greeter.bundle', '--offline'))['offline'], true);
    for (const path of ['', 'dashboard.js', 'dashboard.css', 'icon.svg'])
      assert.equal((await fetch(new URL(path, `${http}/`))).status, 200, path);
  } finally {
    assert.equal((await hypermesh('down'))['stopped'], true);
  }
});

test('the command finds the Node that came with it when the one in the path is too old', async (t) => {
  const old = await olderNode();
  if (old === null) return t.diagnostic('no older Node in the path');
  const { stdout } = await run(old, [join(installed, 'bin', 'hypermesh.js'), '--version']);
  assert.equal(stdout, '0.1.0\n');
});

async function olderNode(): Promise<string | null> {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    const candidate = join(folder, 'node');
    const version = await run(candidate, ['--version']).catch(() => null);
    if (version !== null && Number.parseInt(version.stdout.slice(1), 10) < 26) return candidate;
  }
  return null;
}

test('a TypeScript project type checks against the package: both entry points and the examples of the documentation', async () => {
  await writeFile(
    join(consumer, 'entry-points.ts'),
    `
import { type Catalog, HyperMesh, HyperMeshError, type NodeStatus, verifyBundleOffline } from 'hypermesh';
import { defineExtension, type Digest, digestOf, type HyperMeshExtension } from 'hypermesh/extension';
const hypermesh = await HyperMesh.create({ home: 'home' });
export const catalog: Catalog = await hypermesh.loadExtension('catalog');
export const status: NodeStatus = await hypermesh.node.status();
export const digest: Digest = digestOf(new Uint8Array());
export const { code } = new HyperMeshError('usage', 'why');
// @ts-expect-error a method that is not there shows that types arrive
export const wrong = catalog.nothing();
export { defineExtension, type HyperMeshExtension, verifyBundleOffline };
`,
  );
  // What the guide calls `counter/index.mjs`, which a later example imports.
  const guide = examples(PROJECT).find(({ page, language }) => page === 'docs/extensions.md' && language === 'js');
  await mkdir(join(consumer, 'counter'));
  await writeFile(join(consumer, 'counter', 'index.mjs'), guide!.text);
  const typed = examples(PROJECT).filter(({ language, text }) => language === 'ts' && /from 'hypermesh/.test(text));
  for (const [at, { text }] of typed.entries()) await writeFile(join(consumer, `example-${at}.ts`), text);
  await writeFile(
    join(consumer, 'tsconfig.json'),
    JSON.stringify({
      compilerOptions: {
        ...{ strict: true, noEmit: true, skipLibCheck: true, allowJs: true, types: ['node'] },
        ...{ module: 'nodenext', target: 'esnext', lib: ['esnext'] },
      },
      include: ['*.ts'],
    }),
  );
  const tsc = join(PROJECT, 'node_modules', 'typescript', 'bin', 'tsc');
  await run(process.execPath, [tsc, '-p', consumer]).catch((error: { stdout: string }) => assert.fail(error.stdout));
});
