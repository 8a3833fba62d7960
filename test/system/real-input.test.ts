import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, cp, mkdir, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { freshHome } from './support.ts';

interface Published {
  readonly digest: string;
  readonly shards: { readonly total: number; readonly reused: number; readonly bytesReused: number };
}

interface Installed {
  readonly installed: readonly { readonly name: string; readonly path: string }[];
}

/** `diff -r` is the judge: it follows neither our code nor our idea of equality. */
function diff(a: string, b: string): string {
  const { stdout, stderr } = spawnSync('diff', ['-r', '--no-dereference', a, b], { encoding: 'utf8' });
  return stdout + stderr;
}

function modes(folder: string): string {
  return spawnSync('find', ['.', '-printf', '%P %y %m %l\n'], { cwd: folder, encoding: 'utf8' })
    .stdout.split('\n')
    .sort()
    .join('\n');
}

/** The folder of the TypeScript compiler for this platform, as npm put it there. */
function typescriptFolder(): string {
  const require = createRequire(import.meta.url);
  const typescript = dirname(require.resolve('typescript/package.json'));
  const platform = `@typescript/typescript-${process.platform}-${process.arch}`;
  return dirname(createRequire(join(typescript, 'x.js')).resolve(`${platform}/package.json`));
}

test('the folder of a real npm package comes back byte for byte, and a second version reuses its shards', {
  timeout: 900_000,
}, async () => {
  await using home = await freshHome();
  await home.json(['up', '--detach']);
  const manifest = join(home.folder, 'catalog.yaml');
  await writeFile(
    manifest,
    'name: npm/typescript\nversion: 7.0.0\ntype: library\ndescription: a compiler that is not ours\n',
  );
  const source = join(home.folder, 'typescript');
  await cp(typescriptFolder(), source, { recursive: true });

  const first = await home.json<Published>(['publish', source, '--manifest', manifest]);
  assert.ok(first.shards.total > 20, `only ${first.shards.total} shards`);

  const { installed } = await home.json<Installed>(['install', 'npm/typescript', '--to', join(home.folder, 'here')]);
  assert.equal(diff(source, installed[0]!.path), '');
  assert.equal(modes(join(installed[0]!.path, '.')), modes(source));

  await writeFile(join(source, 'package.json'), '{"changed": true}\n');
  await writeFile(manifest, 'name: npm/typescript\nversion: 7.0.1\ntype: library\n');
  const second = await home.json<Published>(['publish', source, '--manifest', manifest]);
  assert.notEqual(second.digest, first.digest);
  assert.ok(
    second.shards.reused / second.shards.total > 0.8,
    `${second.shards.reused} of ${second.shards.total} shards reused`,
  );

  const updated = await home.json<Installed>(['update', '--to', join(home.folder, 'here')]);
  assert.equal(diff(source, updated.installed[0]!.path), '');
});

test('6,000 small files, empty folders, links and modes come back byte for byte', { timeout: 900_000 }, async () => {
  await using home = await freshHome();
  const source = join(home.folder, 'many');
  for (let folder = 0; folder < 60; folder++) {
    await mkdir(join(source, `d${folder}`, 'empty'), { recursive: true });
    for (let file = 0; file < 100; file++) {
      const path = join(source, `d${folder}`, `f${file}${file % 7 === 0 ? ' ü' : ''}.txt`);
      await writeFile(path, `${folder}/${file}\n`.repeat(file));
      if (file % 10 === 0) await chmod(path, 0o755);
    }
  }
  spawnSync('ln', ['-s', '../d1/f1.txt', join(source, 'd0', 'link')]);
  await writeFile(join(source, 'catalog.yaml'), 'name: many/files\nversion: 1.0.0\ntype: library\n');

  await home.json(['publish', source]);
  const { installed } = await home.json<Installed>(['install', 'many/files', '--to', join(home.folder, 'here')]);
  assert.equal(diff(source, installed[0]!.path), '');
  assert.equal(modes(join(installed[0]!.path, '.')), modes(source));
});
