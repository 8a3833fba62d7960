import { HyperMeshError } from '../../base/errors.ts';
import { readPassphrase } from '../../config.ts';
import { changePassphraseOf } from '../../hypermesh.ts';
import { askPassphrase } from '../ask.ts';
import type { Context, Outcome } from '../command.ts';
import { openWithPassphrase } from '../connect.ts';

export async function passphrase(context: Context, options: { readonly newPassphraseFile?: string }): Promise<Outcome> {
  const loaded = await context.load();
  const { home } = loaded.config;
  const next = () => newPassphrase(options.newPassphraseFile);
  await openWithPassphrase(loaded, askPassphrase, ({ secrets }) => changePassphraseOf(home, { ...secrets, next }));
  const text = 'The keys of this home open with the new passphrase. Copies made before still open as they did.';
  return { data: { home, changed: true }, text };
}

async function newPassphrase(file: string | undefined): Promise<string> {
  if (file !== undefined) return readPassphrase(file);
  const wanted = await askPassphrase('New passphrase');
  if (wanted === null) {
    throw new HyperMeshError('usage', 'There is no terminal to ask for the new passphrase.', {
      hint: 'Use --new-passphrase-file FILE.',
    });
  }
  if ((await askPassphrase('Once more')) !== wanted) {
    throw new HyperMeshError('usage', 'The two passphrases are not the same; nothing was changed.');
  }
  return wanted;
}
