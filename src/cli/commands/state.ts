import { createReadStream } from 'node:fs';
import path from 'node:path';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Context, Outcome } from '../command.ts';
import { writeWhole } from '../files.ts';
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
    const size = await writeWhole(path.resolve(file), content);
    return { data: { file: path.resolve(file), bytes: size }, text: `Wrote ${bytes(size)} to ${file}.` };
  });
}

export async function importState(context: Context, file: string): Promise<Outcome> {
  const stream = file === '-' ? process.stdin : createReadStream(file);
  await context.withNode((client) => client.importState(readable(stream, file), context));
  return { data: { imported: true, file }, text: `Imported ${file}.` };
}

async function* readable(stream: AsyncIterable<Uint8Array>, file: string): AsyncIterable<Uint8Array> {
  try {
    yield* stream;
  } catch (error) {
    throw storageError(error, `reading ${file}`);
  }
}
