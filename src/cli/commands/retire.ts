import { HyperMeshError } from '../../base/errors.ts';
import type { AssetRecord, AssetState } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { oneLine } from '../terminal.ts';

export async function mark(
  context: Context,
  ref: string,
  state: Exclude<AssetState, 'published'>,
  options: { readonly reason?: string; readonly undo?: boolean },
): Promise<Outcome> {
  if (options.undo === true && options.reason !== undefined)
    throw new HyperMeshError('usage', '--undo and --reason contradict each other; use one of them.');
  const next = options.undo === true ? 'published' : state;
  const record = await context.withNode((client) => client.setState(ref, next, options.reason ?? null, context));
  const because = record.stateReason === null ? '' : `: ${oneLine(record.stateReason)}`;
  return { data: summary(record), text: `${record.name}@${record.version} is ${record.state}${because}.` };
}

export async function remove(context: Context, ref: string): Promise<Outcome> {
  const record = await context.withNode((client) => client.delete(ref, context));
  return {
    data: { deleted: true, ...summary(record) },
    text: `Deleted ${record.name}@${record.version}. \`hypermesh gc\` frees its space.`,
  };
}

function summary({ id, name, version, digest, state, stateReason }: AssetRecord) {
  return { id, name, version, digest, state, reason: stateReason };
}
