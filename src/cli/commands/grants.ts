import path from 'node:path';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Client } from '../../client/index.ts';
import { type NeededGrant, neededGrant } from '../../wire/grants.ts';
import type { GrantRequest } from '../../wire/http.ts';
import { type Ask, askLine } from '../ask.ts';
import type { Context, Outcome } from '../command.ts';
import { date, oneLine, plain, table } from '../terminal.ts';

export async function list(context: Context): Promise<Outcome> {
  const grants = await context.withNode((client) => client.grants(context));
  const rows = grants.flatMap(({ ref, connect, folders, grantedAtMs }) => [
    ...connect.map((place) => [ref, `connects to ${place}`, date(grantedAtMs)]),
    ...folders.map(({ name, access, path: folder }) => [ref, `${access}s ${folder} as ${name}`, date(grantedAtMs)]),
  ]);
  return { data: { grants }, text: rows.length === 0 ? 'Nothing is granted to any package.' : table(rows) };
}

/** `ref`: a package, all its versions; or one version. */
export async function revoke(context: Context, ref: string, what: string | undefined): Promise<Outcome> {
  return context.withNode(async (client) => {
    const grants = await client.grants(context);
    const meant = grants.filter((one) => one.ref === ref || one.ref.replace(/@[^@]*$/, '') === ref);
    const answers = [];
    for (const one of meant) answers.push(await client.revokeGrant(one.package, what, context));
    const revoked = answers.some((answer) => answer.revoked);
    const from = meant.map((one) => one.ref).join(', ');
    return {
      data: { revoked, packages: meant.map(({ ref: name, package: digest }) => ({ ref: name, package: digest })) },
      text: revoked ? `Taken back from ${plain(from)}.` : `${plain(ref)} has no such grant.`,
    };
  });
}

/**
 * Runs; when the package asks for more than its box, and `--allow` or the person at the terminal says so, that is granted, and it runs again.
 * Errors: `grant-needed`, `usage`, and those of `work`.
 */
export async function withGrants<T>(
  context: Context,
  client: Client,
  allowed: readonly string[],
  work: () => Promise<T>,
  ask: Ask = askLine,
): Promise<T> {
  const folders = foldersOf(allowed);
  try {
    return await work();
  } catch (error) {
    if (!isCoded(error, 'grant-needed')) throw error;
    const needed = neededGrant.parse(error.details);
    const given =
      withAllowed(needed, allowed, folders) ??
      (context.json ? null : await askFor(context, needed, allowed, folders, ask));
    if (given === null) throw error;
    await client.grant(given, context);
    context.note(
      `Remembered for ${needed.ref}; \`hypermesh grants\` shows it, \`hypermesh grants revoke\` takes it back.`,
    );
    return work();
  }
}

/** What was named by `--allow`, when that is all that is needed. */
function withAllowed(
  needed: NeededGrant,
  allowed: readonly string[],
  folders: ReadonlyMap<string, string>,
): GrantRequest | null {
  const found = needed.folders.map((folder) => ({ ...folder, path: folders.get(folder.name) }));
  if (!needed.connect.every((place) => allowed.includes(place)) || found.some((one) => one.path === undefined))
    return null;
  return { ...needed, folders: found.map((one) => ({ ...one, path: one.path! })) };
}

/** Errors: `usage` for what is neither a place nor a folder. */
function foldersOf(allowed: readonly string[]): Map<string, string> {
  return new Map(
    allowed.flatMap((one) => {
      const at = one.indexOf('=');
      if (at < 0 && !/:\d+$/.test(one)) {
        throw new HyperMeshError(
          'usage',
          `Expected HOST:PORT or NAME=FOLDER after --allow, but got "${oneLine(one)}".`,
        );
      }
      return at < 0 ? [] : [[one.slice(0, at), path.resolve(one.slice(at + 1))]];
    }),
  );
}

/** Asks the person for what `--allow` did not name; null when nobody is there, or says no. */
async function askFor(
  context: Context,
  needed: NeededGrant,
  allowed: readonly string[],
  named: ReadonlyMap<string, string>,
  ask: Ask,
): Promise<GrantRequest | null> {
  context.note(`${needed.ref} asks for more than a program gets:`);
  for (const place of needed.connect) {
    if (allowed.includes(place)) continue;
    const answer = await ask(`  connect to ${plain(place)}. Allow it? [y/N] `);
    if (answer === null || !/^y(es)?$/i.test(answer.trim())) return null;
  }
  const folders = [];
  for (const folder of needed.folders) {
    const answer =
      named.get(folder.name) ??
      (await ask(`  ${folder.access} a folder of yours as "${folder.name}". Which one? (nothing: none) `));
    if (answer === null || answer.trim() === '') return null;
    folders.push({ ...folder, path: path.resolve(answer.trim()) });
  }
  return { ...needed, folders };
}
