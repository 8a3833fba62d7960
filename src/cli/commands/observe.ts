import { HyperMeshError } from '../../base/errors.ts';
import type { Event } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { bytes, count, oneLine, plain, table } from '../terminal.ts';
import { wholeNumber } from './search.ts';

export async function metrics(
  context: Context,
  pattern: string | undefined,
  options: { readonly prometheus?: boolean },
): Promise<Outcome> {
  if (options.prometheus === true) {
    const text = await context.withNode((client) => client.scrape(context));
    return { data: { text }, text };
  }
  const samples = await context.withNode((client) => client.metrics(pattern ?? '*', context));
  const rows = samples.map(({ name, tags, value, count: times }) => [
    name,
    times === undefined ? String(value) : `${value.toFixed(1)} (${times} times)`,
    Object.entries(tags)
      .map(([key, tag]) => `${key}=${tag}`)
      .join(' '),
  ]);
  return { data: { metrics: samples }, text: rows.length === 0 ? 'No such metric yet.' : table(rows) };
}

export async function events(
  context: Context,
  pattern: string | undefined,
  options: { readonly after?: string; readonly follow?: boolean },
): Promise<Outcome | undefined> {
  const follow = options.follow === true;
  if (follow && context.json) {
    throw new HyperMeshError('usage', '--follow never ends, and --json prints one document at the end.', {
      hint: 'Leave out --follow and ask again with --after, or read /v1/events of the API.',
    });
  }
  const request = {
    ...(options.after === undefined ? {} : { after: wholeNumber(options.after, '--after') }),
    ...(pattern === undefined ? {} : { pattern }),
    follow,
  };
  return context.withNode(async (client) => {
    const seen: Event[] = [];
    for await (const event of client.events(request, context)) {
      if (follow) process.stdout.write(`${line(event)}\n`);
      else seen.push(event);
    }
    if (follow) return undefined;
    return { data: { events: seen }, text: seen.length === 0 ? 'No such event.' : seen.map(line).join('\n') };
  });
}

function line({ sequence, atMs, severity, source, type, data }: Event): string {
  const mark = severity === 'info' ? '' : ` ${severity.toUpperCase()}`;
  return `${sequence}  ${new Date(atMs).toISOString()}${mark}  ${plain(source)}  ${plain(type)}  ${oneLine(JSON.stringify(data), 300)}`;
}

export async function gc(context: Context, options: { readonly scrub?: boolean }): Promise<Outcome> {
  const report = await context.withNode((client) => client.collect(options.scrub === true, context));
  const { blobsRemoved, bytesFreed, blobsKept, scrub } = report;
  const scrubbed =
    scrub === undefined ? '' : `\nHashed ${count(scrub.checked, 'blob')} again: ${damaged(scrub.damaged)}.`;
  return {
    data: report,
    text: `Removed ${count(blobsRemoved, 'blob')}, freed ${bytes(bytesFreed)}, kept ${count(blobsKept, 'blob')}.${scrubbed}`,
  };
}

function damaged(digests: readonly string[]): string {
  return digests.length === 0 ? 'none is damaged' : `set aside as damaged: ${plain(digests.join(', '))}`;
}
