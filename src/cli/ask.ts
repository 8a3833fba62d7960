import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { HyperMeshError } from '../base/errors.ts';

/** Asks on the terminal without showing what is typed; null where there is no terminal. */
export async function askPassphrase(what = 'Passphrase of the key store'): Promise<string | null> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return null;
  process.stderr.write(`${what}: `);
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  try {
    return await answer('', process.stdin, silent);
  } finally {
    process.stderr.write('\n');
  }
}

export type Ask = (question: string) => Promise<string | null>;

/** Asks on the terminal; null where there is none. */
export async function askLine(question: string): Promise<string | null> {
  return process.stdin.isTTY && process.stderr.isTTY ? answer(question, process.stdin, process.stderr) : null;
}

/** Errors: `cancelled` at Ctrl-C and Ctrl-D. */
export async function answer(
  question: string,
  input: NodeJS.ReadableStream,
  output: NodeJS.WritableStream,
): Promise<string> {
  const lines = createInterface({ input, output, terminal: true });
  try {
    return await lines.question(question);
  } catch (cause) {
    throw new HyperMeshError('cancelled', 'Interrupted.', { cause });
  } finally {
    lines.close();
  }
}
