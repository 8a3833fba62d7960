import path from 'node:path';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Context, Outcome } from '../command.ts';
import { openFile, writeWhole } from '../files.ts';
import { bytes } from '../terminal.ts';

export async function exportState(context: Context, file: string): Promise<Outcome | undefined> {
  if (file === '-' && context.json)
    throw new HyperMeshError('usage', 'The export and --json cannot both have standard output; name a file.');
  return context.withNode(async (client) => {
    const content = client.exportState(context);
    if (file === '-') {
      for await (const piece of content) {
        if (!process.stdout.write(piece)) await new Promise((resolve) => process.stdout.once('drain', resolve));
      }
      return undefined;
    }
    // Private packages and sealed keys are in it.
    const size = await writeWhole(path.resolve(file), content, 0o600);
    return { data: { file: path.resolve(file), bytes: size }, text: `Wrote ${bytes(size)} to ${file}.` };
  });
}

export async function importState(context: Context, file: string): Promise<Outcome> {
  const handle = file === '-' ? undefined : await openFile(file);
  const stream = handle === undefined ? process.stdin : handle.createReadStream();
  try {
    await context.withNode((client) => client.importState(readable(stream, file), context));
  } finally {
    await handle?.close();
  }
  return { data: { imported: true, file }, text: `Imported ${file}.` };
}

async function* readable(stream: AsyncIterable<Uint8Array>, file: string): AsyncIterable<Uint8Array> {
  try {
    yield* stream;
  } catch (error) {
    throw storageError(error, `reading ${file}`);
  }
}
