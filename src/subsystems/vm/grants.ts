import { chmod, open, readFile, realpath, rename, stat } from 'node:fs/promises';
import path from 'node:path';
import { utf8 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import type { RunRequest } from '../../capabilities/vm.ts';
import { decodeGrants, encodeGrants, type Grant } from '../../wire/grants.ts';

/** What a program was granted of what it asks for. */
export interface Granted {
  readonly connect: readonly string[];
  readonly folders: Grant['folders'];
}

const NOTHING: Granted = { connect: [], folders: [] };
/** No program is shown these, what is in them, or what holds them. */
const NEVER = ['/proc', '/sys', '/dev', '/run', '/var/run', '/boot'];

/**
 * The owner's decisions, in one file. They are about this machine: no export holds them, and an extension can neither see nor change them, only ask to run what has
 * them. Each change is written whole and renamed; a crash leaves the file before or after.
 */
export class Grants {
  readonly #file: string;
  readonly #home: string;
  #changing: Promise<unknown> = Promise.resolve();

  /** `home`: what no program may be shown a part of, or what holds it. */
  constructor({ file, home }: { readonly file: string; readonly home: string }) {
    this.#file = file;
    this.#home = home;
  }

  /** Errors: `config-invalid`, `storage-*`. */
  async list(): Promise<readonly Grant[]> {
    const text = await readFile(this.#file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return null;
      throw storageError(error, 'reading the grants');
    });
    return text === null ? [] : decodeGrants(text);
  }

  /**
   * Adds to what a package has; a folder of a name that it has already takes the place of that one. Paths are kept without links.
   * Errors: `policy-refused` on a folder that is not lent, `file-not-found`, `config-invalid`, `storage-*`.
   */
  async add(given: Omit<Grant, 'grantedAtMs'>, nowMs: number): Promise<Grant> {
    const folders = await Promise.all(
      given.folders.map(async (folder) => ({ ...folder, path: await this.#lendable(folder.path) })),
    );
    return this.#change((grants) => {
      const before = grants.find((one) => one.package === given.package && one.program === given.program);
      const names = new Set(folders.map(({ name }) => name));
      const granted: Grant = {
        package: given.package,
        program: given.program,
        ref: given.ref,
        connect: [...new Set([...(before?.connect ?? []), ...given.connect])].sort(),
        folders: [...(before?.folders.filter(({ name }) => !names.has(name)) ?? []), ...folders],
        grantedAtMs: nowMs,
      };
      return [[...grants.filter((one) => one !== before), granted], granted];
    });
  }

  /** Takes back all that a package has, or one place or folder by name; whether there was any. Runs that go on keep it. */
  async revoke(subject: Digest, what?: string): Promise<boolean> {
    return this.#change((grants) => {
      const kept = grants.flatMap((one): Grant[] => {
        if (one.package !== subject) return [one];
        if (what === undefined) return [];
        const connect = one.connect.filter((place) => place !== what);
        const folders = one.folders.filter(({ name }) => name !== what);
        return connect.length + folders.length === 0 ? [] : [{ ...one, connect, folders }];
      });
      return [kept, JSON.stringify(kept) !== JSON.stringify(grants)];
    });
  }

  /** What a run gets; all that it asks for. Errors: `grant-needed`, which says what is missing, `policy-refused`. */
  async of(request: RunRequest): Promise<Granted> {
    const { subject, policy } = request;
    const { connect = [], folders = [] } = policy;
    if (connect.length + folders.length === 0) return NOTHING;
    const program = programOf(request);
    const grants = await this.list();
    const given = grants.find((one) => one.package === subject?.package && one.program === program);
    const missing = {
      connect: connect.filter((place) => given?.connect.includes(place) !== true),
      folders: folders.filter(({ name, access }) => {
        const folder = given?.folders.find((one) => one.name === name);
        return folder === undefined || (access === 'write' && folder.access !== 'write');
      }),
    };
    if (missing.connect.length + missing.folders.length > 0) throw needed(subject, program, missing);
    const lent = await Promise.all(
      folders.map(async ({ name, access }) => {
        const folder = given!.folders.find((one) => one.name === name)!;
        if ((await this.#lendable(folder.path)) !== folder.path)
          throw refused(folder.path, 'is not the folder any more that was granted');
        const above = grants.find((one) =>
          one.folders.some((other) => other.access === 'write' && isInside(folder.path, other.path)),
        );
        // A program could put a link in its place.
        if (above !== undefined) throw refused(folder.path, `lies in a folder that ${above.ref} may write`);
        return { name, access, path: folder.path };
      }),
    );
    return { connect, folders: lent };
  }

  async #lendable(folder: string): Promise<string> {
    const real = await realpath(folder).catch(() => null);
    if (real === null || !(await stat(real)).isDirectory()) {
      throw new HyperMeshError('file-not-found', `There is no folder ${folder}.`, {
        hint: 'Name a folder that is there.',
      });
    }
    const isNear = (other: string) => real === other || isInside(real, other) || isInside(other, real);
    if (real === '/') throw refused(real, 'is everything');
    if (isNear(this.#home)) throw refused(real, 'is, holds, or lies in the home of the node, where its keys are');
    const system = NEVER.find((other) => isNear(other));
    if (system !== undefined) throw refused(real, `is, holds, or lies in ${system}`);
    return real;
  }

  #change<T>(work: (grants: readonly Grant[]) => [readonly Grant[], T]): Promise<T> {
    const changed = this.#changing.then(async () => {
      const [grants, result] = work(await this.list());
      const temporary = `${this.#file}.new`;
      try {
        {
          await using handle = await open(temporary, 'w', 0o600);
          await handle.writeFile(encodeGrants(grants));
          await handle.sync();
        }
        await chmod(temporary, 0o600);
        await rename(temporary, this.#file);
      } catch (error) {
        throw error instanceof HyperMeshError ? error : storageError(error, 'writing the grants');
      }
      return result;
    });
    this.#changing = changed.catch(() => {});
    return changed;
  }
}

/** What gets the grant: other code, also of a dependency, is another program, and asks again. */
function programOf({ layer, policy: { mounts } }: RunRequest): Digest {
  if (mounts.length === 0) return layer;
  const beside = mounts.map((mount) => [mount.at, mount.layer] as const).sort(([a], [b]) => (a < b ? -1 : 1));
  return digestOf(utf8(canonicalJson([layer, ...beside.map((pair) => [...pair])])));
}

function isInside(inner: string, outer: string): boolean {
  return inner.startsWith(`${outer === '/' ? '' : outer}${path.sep}`);
}

function refused(folder: string, why: string): HyperMeshError {
  return new HyperMeshError('policy-refused', `The folder ${folder} is not lent to programs: it ${why}.`, {
    hint: 'Grant another folder, best one that holds nothing else.',
  });
}

function needed(
  subject: RunRequest['subject'],
  program: Digest,
  missing: { readonly connect: readonly string[]; readonly folders: NonNullable<RunRequest['policy']['folders']> },
): HyperMeshError {
  const wants = [
    ...missing.connect.map((place) => `connect to ${place}`),
    ...missing.folders.map(({ name, access }) => `${access} a folder of yours, which it calls "${name}"`),
  ].join(', and ');
  const ref = subject?.ref ?? 'REF';
  const allow = [
    ...missing.connect.map((place) => `--allow ${place}`),
    ...missing.folders.map(({ name }) => `--allow ${name}=/path/to/folder`),
  ].join(' ');
  return new HyperMeshError(
    'grant-needed',
    `${subject?.ref ?? 'The program'} asks to ${wants}. You have not allowed that.`,
    {
      hint: `Allow it once, for this version: hypermesh run ${ref} ${allow}`,
      details: {
        package: subject?.package ?? null,
        program,
        ref,
        connect: [...missing.connect],
        folders: missing.folders.map(({ name, access }) => ({ name, access })),
      },
    },
  );
}
