import { spawnSync } from 'node:child_process';
import { chmod, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * Emits `dist/package/`, what other projects install: plain JavaScript with declarations, the command, the templates, and a
 * package.json whose `exports` point at them. `npm pack ./dist/package` makes the tarball.
 */
const root = join(import.meta.dirname, '..');
const out = join(root, 'dist', 'package');
await rm(join(root, 'dist'), { recursive: true, force: true });
await mkdir(out, { recursive: true });

const tsc = spawnSync(
  join(root, 'node_modules', '.bin', 'tsc'),
  ['-p', 'tsconfig.build.json', '--outDir', join(out, 'src')],
  {
    cwd: root,
    stdio: 'inherit',
  },
);
if (tsc.status !== 0) process.exit(tsc.status ?? 1);

await cp(join(root, 'src', 'dashboard'), join(out, 'src', 'dashboard'), {
  recursive: true,
  filter: (path) => !path.endsWith('tsconfig.json'),
});
for (const path of ['bin', 'templates', 'README.md', 'CHANGELOG.md', 'LICENSE'])
  await cp(join(root, path), join(out, path), { recursive: true });
await chmod(join(out, 'bin', 'hypermesh.js'), 0o755);

interface PackageJson {
  readonly exports: Readonly<Record<string, string>>;
  readonly [key: string]: unknown;
}

const {
  scripts: _scripts,
  devDependencies: _devDependencies,
  imports: _imports,
  private: _private,
  ...kept
} = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as PackageJson;
const exports = Object.fromEntries(
  Object.entries(kept.exports).map(([name, path]) => [
    name,
    path.endsWith('.ts') ? { types: path.replace(/\.ts$/, '.d.ts'), default: path.replace(/\.ts$/, '.js') } : path,
  ]),
);
await writeFile(join(out, 'package.json'), `${JSON.stringify({ ...kept, exports }, null, 2)}\n`);
process.stdout.write('dist/package is ready: npm pack ./dist/package\n');
