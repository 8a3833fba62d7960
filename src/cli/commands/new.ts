import { cp, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { findPackageJSON } from 'node:module';
import { userInfo } from 'node:os';
import path from 'node:path';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { packageName } from '../../wire/names.ts';
import type { Context, Outcome } from '../command.ts';
import { shellWord } from '../terminal.ts';

/** Templates lie beside this package; each is a package that works at once. */
export async function create(
  _context: Context,
  template: string,
  folder: string,
  options: { readonly name?: string },
): Promise<Outcome> {
  const templates = path.join(path.dirname(findPackageJSON(import.meta.url)!), 'templates');
  const known = (await readdir(templates, { withFileTypes: true })).flatMap((entry) =>
    entry.isDirectory() ? [entry.name] : [],
  );
  if (!known.includes(template)) {
    throw new HyperMeshError('template-not-found', `There is no template "${template.slice(0, 100)}".`, {
      hint: `Templates: ${known.join(', ')}.`,
    });
  }
  const target = path.resolve(folder);
  const name = options.name ?? nameFor(target);
  if (!packageName.safeParse(name).success) {
    throw new HyperMeshError('usage', `Expected a name such as ada/greeter, but got "${name.slice(0, 200)}".`, {
      hint: 'Give one with --name scope/name.',
    });
  }
  await copy(path.join(templates, template), target, name);
  return {
    data: { template, name, path: target },
    text: `Made ${name} in ${target}.\nNext: edit catalog.yaml, then \`hypermesh publish ${shellWord(folder)}\`.`,
  };
}

function nameFor(target: string): string {
  const word = (text: string) =>
    text
      .toLowerCase()
      .replace(/[^a-z0-9._-]+/g, '-')
      .replace(/^[^a-z0-9]+/, '')
      .slice(0, 64);
  return `${word(userName()) || 'me'}/${word(path.basename(target)) || 'package'}`;
}

/** Empty for a user whom this machine does not know, as in some containers. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return '';
  }
}

/** The name that stands in the templates for the one of the package. */
const TEMPLATE_NAME = 'my-scope/my-package';

/** Everything is prepared beside the target; one rename makes it appear. */
async function copy(from: string, target: string, name: string): Promise<void> {
  let prepared: string | undefined;
  try {
    prepared = await mkdtemp(path.join(path.dirname(target), '.hypermesh-new-'));
    const inside = path.join(prepared, 'package');
    await cp(from, inside, { recursive: true });
    for (const file of ['catalog.yaml', 'README.md']) {
      const text = await readFile(path.join(inside, file), 'utf8');
      await writeFile(path.join(inside, file), text.replaceAll(TEMPLATE_NAME, name));
    }
    await rename(inside, target);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (prepared !== undefined && (code === 'ENOTEMPTY' || code === 'EEXIST' || code === 'ENOTDIR')) {
      throw new HyperMeshError('usage', `Expected a new or empty folder, but ${target} is there already.`, {
        hint: 'Name another folder.',
      });
    }
    throw storageError(error, `making ${target}`);
  } finally {
    if (prepared !== undefined) await rm(prepared, { recursive: true, force: true });
  }
}
