import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import type { Context, Outcome } from '../command.ts';
import { writeWhole } from '../files.ts';
import { bytes, count, fields, plain, table } from '../terminal.ts';

interface Source {
  /** Used instead of the `catalog.yaml` in the folder: for folders that are not ours. */
  readonly manifest?: string;
}

export async function pack(
  context: Context,
  folder: string,
  options: Source & { readonly out?: string },
): Promise<Outcome> {
  const [{ writePackageFile }, { packFolder }] = await Promise.all([
    import('../../client/pack.ts'),
    import('../../client/folder.ts'),
  ]);
  const how = folderOptions(context, options);
  if (!(await existing(folder)).isDirectory())
    throw new HyperMeshError('usage', `Expected a folder, but ${folder} is a file.`);
  let out = options.out;
  if (out === undefined) {
    const { name, version } = (await packFolder(folder, how)).manifest;
    out = `${name.replace('/', '-')}-${version}.hmp`;
  }
  const written = await writePackageFile(folder, out, how);
  return { data: written, text: fields({ File: written.file, Digest: written.digest, Size: bytes(written.bytes) }) };
}

function folderOptions(context: Context, { manifest }: Source) {
  return { ...context, ...(manifest === undefined ? {} : { manifestFile: path.resolve(manifest) }) };
}

export async function publish(
  context: Context,
  source: string,
  options: Source & { readonly bundle?: string },
): Promise<Outcome> {
  const packed = await open(context, source, options);
  return context.withNode(async (client) => {
    const layer = await client.stageLayer(packed.tree, { ...context, total: packed.bytes });
    const published = await client.publish(packed.manifestYaml, layer.digest, context);
    const { id, name, version, digest, bundle, size, shards, proofs, created } = published;
    const file = options.bundle === undefined ? undefined : path.resolve(options.bundle);
    if (file !== undefined) await writeWhole(file, canonicalJson(await client.bundle(`${name}@${version}`, context)));
    const data = { id, name, version, digest, bundle, size, files: packed.files, shards, proofs, created };
    const head = fields({
      [created ? 'Published' : 'Unchanged']: `${name}@${version}`,
      Id: id,
      Bundle: file ?? bundle,
      Content: `${count(packed.files, 'file')}, ${bytes(size)}`,
      Shards: `${shards.reused} of ${count(shards.total, 'shard')} reused, ${bytes(shards.bytesReused)} not stored again`,
    });
    const proved = proofs.filter(({ verdict }) => verdict === 'valid').map(({ kind, says }) => [kind, says]);
    return {
      data: file === undefined ? data : { ...data, bundleFile: file },
      text: proved.length === 0 ? head : `${head}\nProofs\n${plain(table(proved))}`,
    };
  });
}

async function existing(source: string): Promise<Stats> {
  return stat(source).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw storageError(error, `reading ${source}`);
    throw new HyperMeshError('file-not-found', `There is no folder or file ${source}.`, {
      hint: 'Name the folder that holds catalog.yaml, or a file that `hypermesh pack` wrote.',
    });
  });
}

/** A folder is packed as it is sent; a packed file is checked as a whole first. */
async function open(context: Context, source: string, options: Source) {
  if ((await existing(source)).isDirectory())
    return (await import('../../client/folder.ts')).packFolder(source, folderOptions(context, options));
  if (options.manifest !== undefined) {
    throw new HyperMeshError('usage', `--manifest goes with a folder, but ${source} is a file.`, {
      hint: 'A packed file already contains its manifest.',
    });
  }
  return (await import('../../client/pack.ts')).readPackageFile(source, context);
}
