import path from 'node:path';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { InstalledPackage, InstallResult } from '../../client/index.ts';
import { decodeLock, LOCK_LIMITS } from '../../wire/lock.ts';
import type { Context, Outcome } from '../command.ts';
import { readTextFile } from '../files.ts';
import { count, plain, table } from '../terminal.ts';

interface To {
  readonly to?: string;
}

export async function list(context: Context, options: To): Promise<Outcome> {
  const packages = await context.withNode((client) => client.installed(rootOf(options), context));
  return {
    data: { installed: packages.map(summary) },
    text:
      packages.length === 0
        ? 'Nothing is installed.'
        : table(packages.map((each) => [each.name, each.version, linkOf(each)])),
  };
}

export async function install(
  context: Context,
  refs: readonly string[],
  options: To & { readonly locked?: boolean },
): Promise<Outcome> {
  const root = rootOf(options);
  if (refs.length === 0 && options.locked !== true) {
    throw new HyperMeshError('usage', 'Expected at least one package to install.', {
      hint: 'Name packages as scope/name or scope/name@range, or use --locked to install what the lock file says.',
    });
  }
  const locked = options.locked === true ? { locked: true, lock: await readLock(context, root) } : {};
  return describe(await context.withNode((client) => client.install({ refs: [...refs], root, ...locked }, context)));
}

async function readLock(context: Context, root: string | undefined): Promise<Json> {
  const folder = root ?? path.join((await context.load()).config.home, 'installed');
  const file = path.join(folder, 'hypermesh.lock');
  const text = await readTextFile(file, LOCK_LIMITS.bytesMax).catch((error: unknown) => {
    if (!isCoded(error, 'file-not-found')) throw error;
    throw new HyperMeshError('lock-outdated', `Expected a lock file at ${file}, but there is none.`, {
      hint: 'Run the same command without --locked, then keep the new hypermesh.lock.',
    });
  });
  // A lock is plain JSON data; its type only promises more.
  return decodeLock(text) as unknown as Json;
}

export async function uninstall(context: Context, names: readonly string[], options: To): Promise<Outcome> {
  return describe(await context.withNode((client) => client.uninstall(names, rootOf(options), context)));
}

export async function update(context: Context, names: readonly string[], options: To): Promise<Outcome> {
  return describe(await context.withNode((client) => client.update(names, rootOf(options), context)));
}

export async function rollback(context: Context, options: To): Promise<Outcome> {
  return describe(await context.withNode((client) => client.rollback(rootOf(options), context)));
}

function rootOf({ to }: To): string | undefined {
  return to === undefined ? undefined : path.resolve(to);
}

/** What a person types: the link that stays when the version changes, beside `.hypermesh/trees/<digest>`. */
function linkOf({ path: tree, name }: InstalledPackage): string {
  return path.join(tree, '..', '..', '..', 'packages', name);
}

function summary({ id, name, version, digest, path: at }: InstalledPackage) {
  return { id, name, version, digest, path: at };
}

function describe(result: InstallResult): Outcome {
  const { root, generation, installed, unchanged, removed } = result;
  const data = { root, generation, installed: installed.map(summary), unchanged: unchanged.map(summary), removed };
  const lines = [
    ...(installed.length === 0 ? [] : [table(installed.map((each) => [`+ ${each.name}`, each.version, linkOf(each)]))]),
    ...removed.map((name) => plain(`- ${name}`)),
    `${count(installed.length, 'package')} installed, ${unchanged.length} unchanged, ${removed.length} removed in ${plain(root)}.`,
  ];
  return { data, text: lines.join('\n') };
}
