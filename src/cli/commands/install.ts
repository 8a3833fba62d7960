import path from 'node:path';
import type { InstalledPackage } from '../../capabilities/assets.ts';
import type { InstallResult } from '../../catalog/api.ts';
import type { Context, Outcome } from '../command.ts';
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
        : table(packages.map((each) => [each.name, each.version, each.path])),
  };
}

export async function install(
  context: Context,
  refs: readonly string[],
  options: To & { readonly locked?: boolean },
): Promise<Outcome> {
  const request = { refs: [...refs], root: rootOf(options), ...(options.locked === true ? { locked: true } : {}) };
  return describe(await context.withNode((client) => client.install(request, context)));
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

function summary({ id, name, version, digest, path: at }: InstalledPackage) {
  return { id, name, version, digest, path: at };
}

function describe(result: InstallResult): Outcome {
  const { root, generation, installed, unchanged, removed } = result;
  const data = { root, generation, installed: installed.map(summary), unchanged: unchanged.map(summary), removed };
  const lines = [
    ...(installed.length === 0 ? [] : [table(installed.map((each) => [`+ ${each.name}`, each.version, each.path]))]),
    ...removed.map((name) => plain(`- ${name}`)),
    `${count(installed.length, 'package')} installed, ${unchanged.length} unchanged, ${removed.length} removed in ${plain(root)}.`,
  ];
  return { data, text: lines.join('\n') };
}
