import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { HyperMeshError } from '../base/errors.ts';
import { changePassphrase, type PassphraseChange } from '../subsystems/trustchain/index.ts';
import { openHome } from './home.ts';

/** Gives a home that no node has open another passphrase. Errors: `home-*`, `key-*`, `config-invalid`, `storage-*`. */
export async function changePassphraseOf(
  path: string,
  change: Pick<PassphraseChange, 'passphrase' | 'next'>,
): Promise<void> {
  // Opening a home makes one; there is nothing to change in that.
  if ((await stat(join(path, 'trust', 'trust.db')).catch(() => null)) === null) {
    throw new HyperMeshError('key-invalid', `There are no keys in ${path}.`, {
      hint: 'Name the home with --home, or start it with a passphrase; it then makes its keys.',
    });
  }
  await using home = await openHome(path);
  await changePassphrase({ ...change, directory: await home.folder('trust') });
}
