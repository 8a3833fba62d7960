import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { SqliteStore } from '../../base/sqlite.ts';
import {
  checkUnlock,
  createUnlockFile,
  decodeSealed,
  newPassphraseKdf,
  readUnlockFile,
  type Unlock,
  unlockWithPassphrase,
} from './keystore.ts';
import type { TrustLimits } from './options.ts';

/** The sealed documents of a home, by their names. */
export function sealedIn(store: SqliteStore): string[] {
  return store.raw
    .prepare('SELECT sealed FROM keystore ORDER BY name')
    .all()
    .map((row) => row['sealed'] as string);
}

/** What this home was opened with. */
export interface Opener {
  readonly directory: string;
  readonly passphrase?: string | undefined;
  readonly limits: Pick<TrustLimits, 'passphraseLog2N'>;
}

/** Finds what opens the key store, and makes sure that it does. For a new home: makes it. */
export async function openUnlock(opener: Opener, sealed: readonly string[]): Promise<Unlock> {
  const { directory, passphrase, limits } = opener;
  const [first] = sealed;
  if (first === undefined) {
    if (passphrase === undefined) return (await readUnlockFile(directory)) ?? createUnlockFile(directory);
    return unlockWithPassphrase(passphrase, newPassphraseKdf(limits.passphraseLog2N));
  }
  const { kdf } = decodeSealed(first);
  if (kdf.name === 'scrypt') {
    if (passphrase === undefined) {
      throw new HyperMeshError('key-locked', 'The key store is encrypted with a passphrase, and none was given.', {
        hint: 'Give the passphrase that this home was created with, or the one it was given last.',
      });
    }
    const unlock = await unlockWithPassphrase(passphrase, kdf);
    checkUnlock(first, unlock);
    return unlock;
  }
  if (passphrase !== undefined) {
    throw new HyperMeshError('key-locked', 'The key store is opened by its key file, not by a passphrase.', {
      hint: 'Start without a passphrase; to have one, run `hypermesh passphrase`.',
    });
  }
  const unlock = await readUnlockFile(directory);
  if (unlock === undefined || unlock.kdf.name !== 'file' || unlock.kdf.id !== kdf.id) {
    throw new HyperMeshError(
      'key-invalid',
      unlock === undefined
        ? `The key file unlock.key is missing from ${directory}.`
        : 'The key file unlock.key belongs to another home.',
      { hint: 'Restore it from the same backup as the home.' },
    );
  }
  return unlock;
}

/** The same for imported documents: whether they open here. Errors: `key-locked`, `key-invalid`. */
export async function unlockImported(opener: Opener, sealed: readonly string[]): Promise<Unlock> {
  try {
    const unlock = await openUnlock(opener, sealed);
    for (const text of sealed) checkUnlock(text, unlock);
    return unlock;
  } catch (error) {
    if (!isCoded(error, 'key-locked')) throw error;
    throw new HyperMeshError('key-locked', 'This home was not opened with the passphrase of the keys in the export.', {
      hint: 'Import into a new home that has that passphrase from its first command on: `hypermesh state import FILE --home NEW --passphrase-file FILE`.',
      cause: error,
    });
  }
}
