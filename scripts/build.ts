import { spawnSync } from 'node:child_process';
import { chmod, cp, glob, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';

/**
 * Emits what other projects install, to `dist/package/` or the folder that is named: plain JavaScript with declarations, the command,
 * the templates, the documentation, and a package.json whose `exports` point at them. `npm pack ./dist/package` makes the tarball.
 */
const root = join(import.meta.dirname, '..');
const out = process.argv[2] === undefined ? join(root, 'dist', 'package') : resolve(process.argv[2]);
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });

const tsc = spawnSync(
  process.execPath,
  [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', 'tsconfig.build.json', '--outDir', join(out, 'src')],
  { cwd: root, stdio: 'inherit' },
);
if (tsc.status !== 0) process.exit(tsc.status ?? 1);

await cp(join(root, 'src', 'dashboard'), join(out, 'src', 'dashboard'), {
  recursive: true,
  filter: (path) => !path.endsWith('tsconfig.json'),
});
// Programs in other languages stay beside the modules that hand them over.
for await (const path of glob('src/**/*.jl', { cwd: root })) await cp(join(root, path), join(out, path));

const copied = ['bin', 'templates', 'docs', 'README.md', 'ARCHITECTURE.md', 'PRINCIPLES.md', 'CHANGELOG.md', 'LICENSE'];
for (const path of copied) await cp(join(root, path), join(out, path), { recursive: true });
await chmod(join(out, 'bin', 'hypermesh.js'), 0o755);

interface PackageJson {
  readonly version: string;
  readonly exports: Readonly<Record<string, string>>;
  readonly [key: string]: unknown;
}

const {
  scripts: _scripts,
  devDependencies: _devDependencies,
  imports: _imports,
  private: _private,
  ...kept
} = await readPackageJson(root);
const exports = Object.fromEntries(
  Object.entries(kept.exports).map(([name, path]) => [
    name,
    path.endsWith('.ts') ? { types: path.replace(/\.ts$/, '.d.ts'), default: path.replace(/\.ts$/, '.js') } : path,
  ]),
);
await writePackageJson(out, { ...kept, exports, bundleDependencies: [await bundleFalcon()] });
process.stdout.write(`${out} is ready: npm pack ${out}\n`);

/**
 * Of pqclean we use one WebAssembly file, but installing it compiles every algorithm in C first. So the package brings that file along,
 * in a pqclean without install script: whoever installs us runs no script and needs no compiler.
 */
async function bundleFalcon(): Promise<string> {
  const name = 'pqclean';
  const from = join(root, 'node_modules', name);
  const to = join(out, 'node_modules', name);
  for await (const path of glob(['wasm/gen/pqclean.wasm', '**/LICENSE'], { cwd: from }))
    await cp(join(from, path), join(to, path));
  const { version, license, repository } = await readPackageJson(from);
  await writePackageJson(to, { name, version, license, repository });
  return name;
}

async function readPackageJson(folder: string): Promise<PackageJson> {
  return JSON.parse(await readFile(join(folder, 'package.json'), 'utf8')) as PackageJson;
}

function writePackageJson(folder: string, content: Readonly<Record<string, unknown>>): Promise<void> {
  return writeFile(join(folder, 'package.json'), `${JSON.stringify(content, null, 2)}\n`);
}
