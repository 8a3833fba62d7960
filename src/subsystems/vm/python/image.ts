import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { HyperMeshError } from '../../../base/errors.ts';
import type { AddedImage, Recipe } from '../added/provision.ts';
import { visible } from '../output.ts';
import type { BoxLimits } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { perform } from '../program.ts';

const MiB = 2 ** 20;

/** Python with its standard library and numpy. */
export const PYTHON: Recipe = {
  ...{ runtime: 'python', title: 'Python', packages: ['python3', 'python3-numpy'], suites: [] },
  ...{ kept: ['lib', 'lib64', 'usr/bin/python3*', 'usr/lib', 'usr/share/zoneinfo'], links: {} },
};

const COMPILED_BYTES_MAX = 256 * MiB;
const LIMITS: BoxLimits = {
  ...{ memoryBytes: 512 * MiB, cpuCores: 1, wallMs: 600_000, pids: 16 },
  ...{ tmpBytes: 16 * MiB, fileBytes: 16 * MiB, outputBytes: MiB },
};
const PATH = /^usr\/lib\/python3[A-Za-z0-9_./+-]{0,500}\/__pycache__\/[A-Za-z0-9_.+-]{1,200}\.pyc$/;

/**
 * Compiles every module below the folders of the interpreter, and sends what came out over descriptor 3: for each file a line with its
 * size and its path, then its bytes. The result depends on the sources alone, not on their times.
 */
const COMPILE = `
import importlib.util, os, py_compile, sys
with os.fdopen(3, 'wb') as out:
    for top in ('/usr/lib/python3', '/usr/lib/python%d.%d' % sys.version_info[:2]):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for path in sorted(os.path.join(folder, name) for name in names if name.endswith('.py')):
                try:
                    py_compile.compile(path, '/tmp/compiled', doraise=True, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
                except Exception:
                    continue
                with open('/tmp/compiled', 'rb') as file: content = file.read()
                out.write(b'%d %s\\n' % (len(content), importlib.util.cache_from_source(path)[1:].encode()))
                out.write(content)
`.trim();

/** The command and the variables by which the interpreter of an image starts. */
export function interpreterOf({ architecture }: Pick<AddedImage, 'architecture'>): {
  readonly interpreter: string;
  readonly environment: Readonly<Record<string, string>>;
} {
  const libraries = `/usr/lib/${architecture === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`;
  // Where the scripts of the packages, which are not run, would have made links.
  return {
    interpreter: '/usr/bin/python3',
    environment: { LD_LIBRARY_PATH: `${libraries}/blas:${libraries}/lapack` },
  };
}

/** Adds to an image what its modules compile to, which is left to scripts of its packages: without it, each program would do that again. */
export async function compileModules(root: string, sandbox: ProcessSandbox): Promise<void> {
  const { interpreter, environment } = interpreterOf({ architecture: process.arch });
  const box = await sandbox.start({
    command: [interpreter, '-B', '-S', '-W', 'ignore', '-X', 'utf8', '-c', COMPILE],
    ...{ root, mounts: [], limits: LIMITS },
    // Sets in a module would be written in another order each time.
    environment: { ...environment, PYTHONHASHSEED: '0' },
  });
  const { exit, control, stderr } = await perform(box, new Uint8Array(), COMPILED_BYTES_MAX);
  if (exit.termination !== 'exit' || exit.exitCode !== 0)
    throw new HyperMeshError(
      'runtime-unavailable',
      `The modules of Python could not be compiled: ${exit.reason ?? visible(Buffer.from(stderr).toString('utf8')).slice(0, 500)}`,
    );
  for (let at = 0; at < control.length; ) {
    const end = control.indexOf(0x0a, at);
    const [, size, path = ''] =
      /^(\d{1,9}) (\S+)$/.exec(Buffer.from(control.subarray(at, Math.max(at, end))).toString('latin1')) ?? [];
    // It came from a box.
    if (size === undefined || !PATH.test(path) || path.includes('..'))
      throw new HyperMeshError('runtime-unavailable', 'The compiler of Python said what it never should.');
    const file = join(root, path);
    await mkdir(dirname(file), { recursive: true });
    await chmod(dirname(file), 0o755);
    await writeFile(file, control.subarray(end + 1, end + 1 + Number(size)), { flag: 'wx', mode: 0o644 });
    at = end + 1 + Number(size);
  }
}
