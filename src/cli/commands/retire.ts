import { HyperMeshError } from '../../base/errors.ts';
import type { AssetRecord, AssetState } from '../../client/index.ts';
import { parseRef, semverVersion } from '../../wire/names.ts';
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
  const { name, range } = parseRef(ref);
  if (!semverVersion.safeParse(range).success) {
    throw new HyperMeshError('usage', `Expected one version to delete, such as ${name}@1.0.0, but got "${ref}".`, {
      hint: `\`hypermesh info ${name}\` lists the versions.`,
    });
  }
  const record = await context.withNode((client) => client.delete(ref, context));
  return {
    data: { deleted: true, ...summary(record) },
    text: `Deleted ${record.name}@${record.version}. \`hypermesh gc\` frees its space.`,
  };
}

function summary({ id, name, version, digest, state, stateReason }: AssetRecord) {
  return { id, name, version, digest, state, reason: stateReason };
}
