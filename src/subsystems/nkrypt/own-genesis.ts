import { canonicalJson } from '../../base/json.ts';
import type { Genesis } from '../../wire/genesis.ts';
import type { LentTrust } from './entering.ts';
import { foundNetwork } from './found.ts';
import type { NKryptOptions } from './nkrypt.ts';
import type { Store } from './store.ts';

/** Commit point: genesis and its accounts appear together. A crash before it founds another network at the next start. */
export async function ensureGenesis(store: Store, trust: LentTrust, options: NKryptOptions): Promise<void> {
  if (store.raw.prepare('SELECT 1 FROM genesis').get() !== undefined) return;
  await foundOwn(store, trust, options);
}

/** Another network, whose founder is this home; in the place of the one it was in. */
export async function foundOwn(store: Store, trust: LentTrust, options: NKryptOptions): Promise<void> {
  const genesis = await foundNetwork(trust, options.clock, options);
  store.transact((raw) => replaceGenesis(raw, genesis));
}

/** This home is in the network of that genesis from here on. */
export function replaceGenesis(raw: Store['raw'], genesis: Genesis): void {
  forget(raw);
  raw.prepare('INSERT INTO genesis (id, document) VALUES (1, ?)').run(canonicalJson(genesis));
}

/** Everything that is known of a network: it means nothing in another one. */
function forget(raw: Store['raw']): void {
  for (const table of [
    'genesis',
    'identities',
    'orders',
    'votes',
    'floors',
    'closed',
    'certificates',
    'ballots',
    'accusations',
    'facts',
    'fact_sum',
    'epochs',
    'instructions',
    'log_entries',
    'log_certificates',
    'log_state',
    'log_snapshot',
    'log_recovery',
    'move_approvals',
    'facts_before',
    'sequenced',
    'commitments',
    'joined',
    'versions',
  ])
    raw.exec(`DELETE FROM ${table}`);
}
