import { base64, fromBase64 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { AssetRecord, AssetState } from '../capabilities/assets.ts';
import { encodeSigned } from '../wire/signed.ts';
import {
  decodeSignedStateChange,
  encodeStateChange,
  STATE_CHANGE_TYPE,
  type StateChange,
} from '../wire/state-change.ts';
import { nextSequence, remember } from './accept.ts';
import type { CatalogContext } from './context.ts';
import { newestInRange } from './versions.ts';

/** Yank, deprecate, restore and delete: only the publisher may. What it says is signed, counts here and goes to the network. */

export async function setState(
  context: CatalogContext,
  ref: string,
  state: AssetState,
  reason: string | null,
): Promise<AssetRecord> {
  const record = await owned(context, ref);
  const said = await prepare(context, record, state, reason);
  const changed = await context.lent.assets.setState(record.id, state, reason);
  await conclude(context, said);
  return changed;
}

/** Errors: `has-dependents` with the list. */
export async function deleteVersion(context: CatalogContext, ref: string): Promise<AssetRecord> {
  const record = await owned(context, ref);
  const said = await prepare(context, record, 'deleted', null);
  await context.lent.assets.delete(record.id);
  await conclude(context, said);
  return record;
}

/** After a crash: what was said and took effect here goes to the network, what did not is forgotten. */
export async function concludeAll(context: CatalogContext): Promise<void> {
  const { assets, state } = context.lent;
  for (const { key, value } of await state.list(NOTES)) {
    const bytes = fromBase64(String(value));
    const { change } = decodeSignedStateChange(bytes);
    const now = (await assets.get(change.asset))?.state ?? 'deleted';
    if (now === change.state) await conclude(context, bytes);
    else await state.write({ [key]: undefined });
  }
}

/** Notes of what is being said: `say/<asset id>`, the signed change in base64. */
const NOTES = 'say/';

/** Signs the change, and notes it down before it takes effect. */
async function prepare(
  context: CatalogContext,
  record: AssetRecord,
  state: StateChange['state'],
  reason: string | null,
): Promise<Uint8Array> {
  const { lent, clock } = context;
  const [{ networkId }, { chain }] = await Promise.all([lent.consensus.genesis(), lent.trust.identity('publisher')]);
  const payload = encodeStateChange({
    formatVersion: 1,
    network: networkId,
    asset: record.id,
    bundle: record.bundle,
    state,
    reason,
    sequence: await nextSequence(context, record.id),
    changedAtMs: clock.nowMs(),
  });
  const bytes = encodeSigned({ envelope: await lent.trust.sign('publisher', STATE_CHANGE_TYPE, payload), chain });
  await lent.state.write({ [NOTES + record.id]: base64(bytes) });
  return bytes;
}

async function conclude(context: CatalogContext, said: Uint8Array): Promise<void> {
  const { lent } = context;
  const { change } = decodeSignedStateChange(said);
  await remember(context, change);
  await lent.transport.broadcast(said);
  await lent.state.write({ [NOTES + change.asset]: undefined });
}

async function owned({ lent }: CatalogContext, ref: string): Promise<AssetRecord> {
  const record = await newestInRange(lent.assets, ref);
  const { keyId } = await lent.trust.identity('publisher');
  if (record.owner === keyId) return record;
  throw new HyperMeshError(
    'not-owner',
    `${record.name}@${record.version} was published by ${record.owner}, not by ${keyId}.`,
    {
      hint: 'Ask its publisher, or uninstall it here.',
    },
  );
}
