import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { openSqlite } from '../../base/sqlite.ts';
import { newPassphraseKdf, sealKeys, UNLOCK_FILE, unlockWithPassphrase, unsealKeys } from './keystore.ts';
import { checkPassphrase, LIMITS } from './options.ts';
import { MIGRATIONS } from './tables.ts';
import { openUnlock, sealedIn } from './unlocking.ts';

export interface PassphraseChange {
  /** Of the trust subsystem, in a home that nobody else has open. */
  readonly directory: string;
  /** The one until now; absent when the keys lie behind a key file. */
  readonly passphrase?: string;
  /** The new one: asked for when the old one has been found right. */
  next(): Promise<string>;
  readonly log2N?: number;
}

/**
 * Seals the keys of a home anew, so that only the new passphrase opens them. Copies that were made before open as before.
 *
 * Commit point: one transaction over both documents. A crash before it leaves the old passphrase, a crash after it the new one, and
 * perhaps a key file that opens nothing any more; the next change removes it.
 * Errors: `key-locked` (passphrase missing or wrong), `key-invalid`, `config-invalid` (what is no passphrase), `storage-*`.
 */
export async function changePassphrase({ directory, passphrase, next, log2N }: PassphraseChange): Promise<void> {
  await using store = openSqlite(join(directory, 'trust.db'), MIGRATIONS);
  const sealed = sealedIn(store);
  if (sealed.length === 0) {
    throw new HyperMeshError('key-invalid', 'There are no keys in this home yet.', {
      hint: 'Start it with a passphrase; it then makes its keys.',
    });
  }
  const before = await openUnlock({ directory, passphrase, limits: LIMITS }, sealed);
  const wanted = await next();
  checkPassphrase(wanted);
  const after = await unlockWithPassphrase(wanted, newPassphraseKdf(log2N ?? LIMITS.passphraseLog2N));
  try {
    // What SQLite frees is overwritten: the file keeps nothing that the old passphrase opens.
    store.raw.exec('PRAGMA secure_delete = ON');
    store.transact((raw) => {
      const update = raw.prepare('UPDATE keystore SET sealed = ? WHERE sealed = ?');
      for (const text of sealed) {
        const keys = unsealKeys(text, before);
        try {
          update.run(sealKeys(keys, after), text);
        } finally {
          for (const key of keys.values()) for (const secret of [key.falconSecret, key.ed25519Seed]) secret.fill(0);
        }
      }
    });
    store.raw.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  } finally {
    before.key.fill(0);
    after.key.fill(0);
  }
  const file = join(directory, UNLOCK_FILE);
  await rm(file, { force: true }).catch((error: unknown) => {
    throw storageError(error, `removing ${file}`);
  });
}
