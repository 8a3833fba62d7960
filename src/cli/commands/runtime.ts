import { EXIT, HyperMeshError } from '../../base/errors.ts';
import type { Context, Outcome } from '../command.ts';
import { plain, table } from '../terminal.ts';

export async function list(context: Context): Promise<Outcome> {
  const runtimes = await context.withNode((client) => client.runtimes(context));
  const rows = runtimes.map(({ kind, available, version, reason }) => [
    kind,
    available ? 'available' : 'missing',
    (available ? version : reason) ?? '',
  ]);
  return { data: { runtimes }, text: table(rows) };
}

export async function add(context: Context, language: string): Promise<Outcome> {
  const runtime = await context.withNode((client) => client.addRuntime(checked(language), context));
  if (runtime.available) return { data: runtime, text: `This node can run ${plain(runtime.version ?? language)}.` };
  return {
    data: runtime,
    text: `${plain(language)} was added, but cannot run here: ${plain(runtime.reason ?? 'the reason is not known')}`,
    exit: EXIT.unavailable,
  };
}

export async function remove(context: Context, language: string): Promise<Outcome> {
  const { removed } = await context.withNode((client) => client.removeRuntime(checked(language), context));
  return { data: { removed }, text: removed ? `${plain(language)} is gone.` : `${plain(language)} was not there.` };
}

function checked(language: string): string {
  if (/^[a-z]{1,32}$/.test(language)) return language;
  throw new HyperMeshError('usage', `Expected the name of a language, but got "${language.slice(0, 50)}".`, {
    hint: 'hypermesh runtime add julia',
  });
}
