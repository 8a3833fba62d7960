import { HyperMeshError } from '../../base/errors.ts';
import type { AssetRecord } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { bytes, count, date, fields, oneLine, plain, table } from '../terminal.ts';

export async function search(
  context: Context,
  words: readonly string[],
  options: Readonly<Record<string, string | boolean | undefined>>,
): Promise<Outcome> {
  const given = (name: string) => (typeof options[name] === 'string' ? { [name]: options[name] } : {});
  const page = await context.withNode((client) =>
    client.search(
      {
        text: words.join(' '),
        ...given('type'),
        ...given('language'),
        ...given('keyword'),
        ...given('owner'),
        ...given('license'),
        ...given('cursor'),
        ...(options['yanked'] === true ? { includeYanked: true } : {}),
        ...(options['limit'] === undefined ? {} : { limit: wholeNumber(options['limit'], '--limit', 1, 100) }),
      },
      context,
    ),
  );
  if (page.hits.length === 0) return { data: page, text: 'Nothing found.' };
  const rows = page.hits.map(({ record }) => [
    record.name,
    record.version,
    record.type,
    record.state === 'published' ? '' : record.state,
    oneLine(record.manifest.description ?? '', 80),
  ]);
  const more = page.cursor === null ? '' : `\nMore: add --cursor ${page.cursor}`;
  return { data: page, text: `${table(rows)}\n${page.hits.length} of ${count(page.total, 'package')}.${more}` };
}

export function wholeNumber(text: unknown, what: string, min = 0, max = 10 ** 15 - 1): number {
  const value = Number(text);
  if (typeof text === 'string' && /^\d{1,15}$/.test(text) && value >= min && value <= max) return value;
  throw new HyperMeshError(
    'usage',
    `Expected a whole number from ${min} to ${max} for ${what}, but got "${String(text).slice(0, 50)}".`,
  );
}

export async function info(context: Context, ref: string): Promise<Outcome> {
  const result = await context.withNode((client) => client.info(ref, context));
  const { record, versions, dependents } = result;
  const { manifest } = record;
  const list = (values: readonly string[]) => (values.length === 0 ? undefined : values.join(', '));
  const text = [
    fields({
      Package: `${record.name}@${record.version}`,
      About: manifest.description,
      State: record.state === 'published' ? undefined : stateOf(record),
      Type: record.type + (manifest.language === undefined ? '' : `, ${manifest.language}`),
      License: manifest.license,
      Authors: list(manifest.authors),
      Keywords: list(manifest.keywords),
      Homepage: manifest.homepage,
      'Depends on': list(Object.entries(manifest.dependencies).map(([name, range]) => `${name}@${range}`)),
      // Beyond the box that every program has.
      'Asks for': list([
        ...(manifest.sandbox.connect ?? []).map((place) => `a connection to ${place}`),
        ...Object.entries(manifest.sandbox.folders ?? {}).map(([name, access]) => `a folder to ${access} (${name})`),
      ]),
      Size: bytes(record.size),
      Published: date(record.createdAtMs),
      Owner: record.owner,
      Id: record.id,
      Bundle: record.bundle,
    }),
    `\nVersions: ${plain(versions.map((each) => (each.state === 'published' ? each.version : `${each.version} (${each.state})`)).join(', '))}`,
    ...(dependents.length === 0 ? [] : [`Used by: ${plain(dependents.map((each) => each.ref).join(', '))}`]),
  ];
  return { data: result, text: text.join('\n') };
}

function stateOf(record: AssetRecord): string {
  return record.stateReason === null ? record.state : `${record.state}: ${record.stateReason}`;
}
