import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Auditor, AuditReport, Finding } from '../../audit/auditor.ts';
import { fromUtf8 } from '../../base/bytes.ts';
import { isDigest } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Client } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { readTextFile } from '../files.ts';
import { count, fields, oneLine } from '../terminal.ts';

/** Of a file that is read as one document, and of a line of one that is not. */
const DOCUMENT_BYTES_MAX = 32 * 2 ** 20;
const PAGE = 100;
const LF = 10;

/** Without files: what the node of this home holds. */
export async function audit(
  context: Context,
  files: readonly string[],
  options: { readonly genesis?: string },
): Promise<Outcome> {
  const { genesis } = options;
  if (genesis !== undefined && !isDigest(genesis))
    throw new HyperMeshError('usage', 'Expected "sha256:" and 64 hexadecimal digits after --genesis.');
  const { openAuditor } = await import('../../main.ts');
  const auditor = await openAuditor(genesis);
  let unreadable = 0;
  for (const file of files) unreadable += await readFile(auditor, file);
  if (files.length === 0) await context.withNode((client) => readNode(auditor, client, context));
  return described({ ...auditor.report(), unreadable });
}

/** One JSON document, or one on each line. Answers how many lines are none: a process that was killed leaves half of one. */
async function readFile(auditor: Auditor, file: string): Promise<number> {
  const size = (await stat(file).catch(() => null))?.size ?? 0;
  if (size <= DOCUMENT_BYTES_MAX) {
    const whole = parsed(await readTextFile(file, DOCUMENT_BYTES_MAX));
    if (whole !== undefined) {
      auditor.add(whole);
      return 0;
    }
  }
  let unreadable = 0;
  for await (const line of linesOf(file)) {
    if (line.trim() === '') continue;
    const document = parsed(line);
    if (document === undefined) unreadable += 1;
    else auditor.add(document);
  }
  return unreadable;
}

async function* linesOf(file: string): AsyncGenerator<string, void, undefined> {
  let begun: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of createReadStream(file) as AsyncIterable<Uint8Array>) {
      let from = 0;
      for (let at = chunk.indexOf(LF); at >= 0; at = chunk.indexOf(LF, from)) {
        yield textOf([...begun, chunk.subarray(from, at)]);
        [begun, size, from] = [[], 0, at + 1];
      }
      begun.push(chunk.subarray(from));
      size += chunk.length - from;
      if (size > DOCUMENT_BYTES_MAX)
        throw new HyperMeshError('limit-exceeded', `A line of ${file} has more than ${DOCUMENT_BYTES_MAX} bytes.`);
    }
  } catch (error) {
    if (error instanceof HyperMeshError) throw error;
    throw storageError(error, `reading ${file}`);
  }
  yield textOf(begun);
}

function textOf(pieces: readonly Uint8Array[]): string {
  try {
    return fromUtf8(Buffer.concat(pieces));
  } catch {
    return '?';
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

/** Every bundle that the node knows, yanked ones too. */
async function readNode(auditor: Auditor, client: Client, context: Context): Promise<void> {
  for (let cursor: string | undefined; ; ) {
    const page = await client.search(
      { limit: PAGE, includeYanked: true, ...(cursor === undefined ? {} : { cursor }) },
      context,
    );
    for (const { record } of page.hits) {
      const { versions } = await client.info(record.name, context);
      for (const { version } of versions) auditor.add(await client.bundle(`${record.name}@${version}`, context));
    }
    if (page.cursor === null) return;
    cursor = page.cursor;
  }
}

function described(report: AuditReport & { readonly unreadable: number }): Outcome {
  const { networks, checked, worthless, unlinked, conflicts, misdeeds, unreadable } = report;
  if (conflicts.length > 0) {
    throw new HyperMeshError('audit-conflict', `${says(conflicts)}`, {
      hint: 'With --json, `details.conflicts` has the signed statements that show it.',
      details: { ...report },
    });
  }
  const { documents, certificates, votes, committees, heads, entries, orders } = checked;
  const text = fields({
    Networks: networks.length === 0 ? 'none: no genesis document among what was read' : networks.join(', '),
    Read: `${count(documents, 'document')}${unreadable === 0 ? '' : `, ${count(unreadable, 'line')} that say nothing`}`,
    Checked: [
      ...[count(certificates, 'certificate'), count(votes, 'vote'), count(orders, 'signed order')],
      ...[count(committees, 'committee'), count(heads, 'head'), `${entries} of the order's entries`],
    ].join(', '),
    ...(worthless === 0 ? {} : { Worthless: `${count(worthless, 'statement')} without a good signature or a seat` }),
    ...(unlinked === 0 ? {} : { Unlinked: `${count(unlinked, 'head')} whose entries were not there to be followed` }),
    Conflicts: 'none',
    Misdeeds: misdeeds.length === 0 ? 'none' : says(misdeeds),
  });
  return { data: report, text };
}

function says(findings: readonly Finding[]): string {
  const shown = findings.slice(0, 10).map((finding) => oneLine(finding.says));
  const more = findings.length - shown.length;
  return [...shown, ...(more === 0 ? [] : [`And ${more} more.`])].join(' ');
}
