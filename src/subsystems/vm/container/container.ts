import { lstat, readFile, readlink } from 'node:fs/promises';
import path from 'node:path';
import { LRUCache } from 'lru-cache';
import { utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { Assets } from '../../../capabilities/assets.ts';
import type { RunRequest, RunResult, Runtime, RuntimeStatus } from '../../../capabilities/vm.ts';
import type { ExecutionLimits } from '../limits.ts';
import { logTo } from '../output.ts';
import type { BoxSpec } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { type HeldTree, type Trees, UNFINISHED } from '../process/trees.ts';
import { perform, resultOf } from '../program.ts';
import { encodeInput, type OpenedRequest, refuseFuel } from '../request.ts';
import { ImageSource, identify, PROGRAM_FILE, ROOT_FOLDER } from './image.ts';
import { commandOf, decodeProgram, type ImageProgram } from './program.ts';

/** What the programs around the box take. */
const RUNTIME_BYTES = 8 * 2 ** 20;
const PIDS = 64;
const LINKS_MAX = 40;
const IDENTITIES_MAX = 1_000;
/** Where a name without a slash is looked for when the image does not say. */
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Runs container images that packages carry: each run in a box of its own, with the image as its root, read-only. The image is verified and unpacked once,
 * and shown to all runs; the node needs no container engine for it.
 */
export class ContainerRuntime implements Runtime {
  readonly kind = 'container';
  readonly #assets: Pick<Assets, 'tree' | 'readFile'>;
  readonly #sandbox: ProcessSandbox;
  readonly #trees: Trees;
  readonly #roots: Trees;
  readonly #limits: ExecutionLimits;
  /** Of images that ran, by where they lie; content does not change. */
  readonly #identities = new LRUCache<Digest, string>({ max: IDENTITIES_MAX });

  /** `trees`: for packages; `roots`: for unpacked images, with limits of their own. */
  constructor(
    lent: {
      readonly assets: Pick<Assets, 'tree' | 'readFile'>;
      readonly sandbox: ProcessSandbox;
      readonly trees: Trees;
      readonly roots: Trees;
    },
    options: { readonly limits: ExecutionLimits },
  ) {
    this.#assets = lent.assets;
    this.#sandbox = lent.sandbox;
    this.#trees = lent.trees;
    this.#roots = lent.roots;
    this.#limits = options.limits;
  }

  async probe(): Promise<RuntimeStatus> {
    const { available, reason, remedy, enforces } = await this.#sandbox.probe();
    if (available) return { kind: 'container', available, version: 'OCI image 1.1', reason: null, enforces };
    return { kind: 'container', available, version: null, reason: [reason, remedy].filter(Boolean).join(' ') };
  }

  /** `entry` of the request is the image in the package. */
  async run(request: OpenedRequest, options: CallOptions = {}): Promise<RunResult> {
    const input = encodeInput(request.input, this.#limits);
    const { policy } = request;
    refuseFuel(policy, 'container');
    using held = new DisposableStack();
    const image = held.use(await this.#hold(request, options));
    const root = path.join(image.path, ROOT_FOLDER);
    const program = decodeProgram(await readFile(path.join(image.path, PROGRAM_FILE), 'utf8'));
    const environment = { ...environmentOf(program), ...policy.environment };
    const [first, ...args] = commandOf(program, request.args);
    const command = [await locate(root, first, program, environment['PATH'] ?? PATH), ...args];
    const mounts: BoxSpec['mounts'][number][] = [];
    mounts.push({ source: held.use(await this.#holdPackage(request, options)).path, at: '/package' });
    for (const { layer, at } of policy.mounts)
      mounts.push({ source: held.use(await this.#trees.hold(layer, options)).path, at });
    const { memoryBytes, cpuCores, wallMs, outputBytes, tmpBytes } = policy;
    const box = await this.#sandbox.start(
      {
        ...{ command, root, mounts, environment, ...request.openings },
        workingFolder: program.workingDir,
        user: { uid: program.uid, gid: program.gid },
        hasControl: false,
        limits: {
          ...{ cpuCores, wallMs, outputBytes, tmpBytes, pids: PIDS, fileBytes: Math.max(tmpBytes, 1) },
          memoryBytes: memoryBytes + RUNTIME_BYTES,
        },
      },
      options,
    );
    return resultOf(await perform(box, input, undefined, logTo(options.onProgress)), RUNTIME_BYTES, memoryBytes);
  }

  /** The image, unpacked and checked, until it is given back. Packages with the same image share it. */
  async #hold({ layer, entry }: RunRequest, options: CallOptions): Promise<HeldTree> {
    const place = keyOf(layer, entry);
    const identity = this.#identities.get(place) ?? (await identify(this.#assets, { layer, entry }, options));
    this.#identities.set(place, identity);
    return this.#roots.hold(keyOf('image', identity), options, () =>
      ImageSource.open(
        this.#assets,
        { layer, entry },
        {
          ...{ ...options, directory: this.#roots.directory, prefix: UNFINISHED },
          // Layers name the same file again, and take names away.
          namesMax: Math.floor(2.5 * this.#limits.filesMax),
        },
      ),
    );
  }

  /** The files of the package beside its image. */
  async #holdPackage({ layer, entry }: RunRequest, options: CallOptions): Promise<HeldTree> {
    const isBeside = (name: string) => name !== entry && !name.startsWith(`${entry}/`);
    return this.#trees.hold(keyOf('beside', layer, entry), options, async () => ({
      tree: async (given) => (await this.#assets.tree(layer, given)).filter(({ path: name }) => isBeside(name)),
      readFile: (name, given) => this.#assets.readFile(layer, name, given),
    }));
  }
}

/** What stands for a tree that is made of another one. */
function keyOf(...words: readonly string[]): Digest {
  return digestOf(utf8(words.join('\0')));
}

function environmentOf({ env }: ImageProgram): Record<string, string> {
  return Object.fromEntries(env.map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
}

/** The path of the program inside the image. Errors: `program-invalid`. */
async function locate(root: string, name: string, { workingDir }: ImageProgram, search: string): Promise<string> {
  const candidates = name.includes('/')
    ? [path.posix.resolve(workingDir, name)]
    : search.split(':').map((folder) => path.posix.resolve(workingDir, folder, name));
  for (const candidate of candidates) {
    // The files of the package lie in the box, but not in the image.
    if (/^\/packages?\//.test(candidate)) return candidate;
    const found = await inside(root, candidate);
    if (found !== null) return candidate;
  }
  throw new HyperMeshError('program-invalid', `The image has no program ${JSON.stringify(name.slice(0, 200))}.`, {
    hint: 'Its `Entrypoint`, its `Cmd`, or the arguments of the run name a program that must be in the image, executable.',
  });
}

/** The executable file at a path inside a root, as the box will see it: links are followed within the root, and never on the host. */
async function inside(root: string, name: string): Promise<string | null> {
  const at: string[] = [];
  const rest = name.split('/').filter(Boolean).reverse();
  let links = 0;
  for (let part = rest.pop(); part !== undefined; part = rest.pop()) {
    if (part === '..') {
      at.pop();
      continue;
    }
    const here = path.join(root, ...at, part);
    const info = await lstat(here).catch(() => null);
    if (info === null) return null;
    if (info.isSymbolicLink()) {
      if (++links > LINKS_MAX) return null;
      const target = await readlink(here);
      if (target.startsWith('/')) at.length = 0;
      rest.push(
        ...target
          .split('/')
          .filter((one) => one !== '' && one !== '.')
          .reverse(),
      );
    } else if (rest.length > 0 && !info.isDirectory()) {
      return null;
    } else if (rest.length === 0 && !(info.isFile() && (info.mode & 0o111) !== 0)) {
      return null;
    } else {
      at.push(part);
    }
  }
  return `/${at.join('/')}`;
}
