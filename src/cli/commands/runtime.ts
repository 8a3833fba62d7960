import { stat } from 'node:fs/promises';
import { EXIT, HyperMeshError } from '../../base/errors.ts';
import type { Client } from '../../client/index.ts';
import type { RuntimeRequest } from '../../wire/http.ts';
import type { Context, Outcome } from '../command.ts';
import { bytes, fields, plain, shellWord, table } from '../terminal.ts';

export async function list(context: Context): Promise<Outcome> {
  const runtimes = await context.withNode((client) => client.runtimes(context));
  const rows = runtimes.map(({ kind, available, version, reason }) => [
    kind,
    available ? 'available' : 'missing',
    (available ? version : reason) ?? '',
  ]);
  return { data: { runtimes }, text: table(rows) };
}

export async function add(
  context: Context,
  language: string,
  { from, digest }: { readonly from?: string; readonly digest?: string } = {},
): Promise<Outcome> {
  const kind = checked(language);
  const runtime = await context.withNode(async (client) =>
    client.addRuntime(kind, from === undefined ? {} : await sourceOf(context, client, from, digest), context),
  );
  if (runtime.available) return { data: runtime, text: `This node can run ${plain(runtime.version ?? language)}.` };
  return {
    data: runtime,
    text: `${plain(language)} was added, but cannot run here: ${plain(runtime.reason ?? 'the reason is not known')}`,
    exit: EXIT.unavailable,
  };
}

/** A package of the catalog is verified by the node; a file, which carries no signature, must be the one that was asked for. */
async function sourceOf(
  context: Context,
  client: Client,
  from: string,
  digest: string | undefined,
): Promise<RuntimeRequest> {
  const isFile = await stat(from).then(
    (info) => info.isFile(),
    () => false,
  );
  if (!isFile) {
    if (digest === undefined) return { ref: from };
    throw new HyperMeshError('usage', `--digest goes with a file, but there is no file ${from.slice(0, 200)}.`, {
      hint: 'A package of the catalog is verified by its signature; name an exact version with @.',
    });
  }
  const packed = await (await import('../../client/pack.ts')).readPackageFile(from, context);
  if (digest !== packed.digest) {
    throw new HyperMeshError(
      digest === undefined ? 'usage' : 'blob-mismatch',
      digest === undefined
        ? `${from} is a file that nobody has signed: say which one it must be with --digest.`
        : `Expected the package ${digest}, but ${from} holds ${packed.digest}.`,
      {
        hint:
          digest === undefined
            ? 'Whoever exported it was told the digest. Or publish it, and name the package: then its signature is checked.'
            : 'Fetch the file again, or ask whoever exported it for the digest.',
      },
    );
  }
  const layer = await client.stageLayer(packed.tree, { ...context, total: packed.bytes });
  return { layer: layer.digest };
}

export async function exportImage(
  context: Context,
  language: string,
  { out = `${language}.hmp` }: { readonly out?: string },
): Promise<Outcome> {
  const kind = checked(language);
  const { writePackageTree } = await import('../../client/pack.ts');
  const written = await context.withNode((client) => writePackageTree(client.exportRuntime(kind, context), out));
  const text = fields({
    Package: `${written.name}@${written.version}`,
    File: written.file,
    Digest: written.digest,
    Size: bytes(written.bytes),
  });
  return {
    data: written,
    text: `${text}\nNext: \`hypermesh publish ${shellWord(out)}\`, or give file and digest to another node.`,
  };
}

export async function remove(context: Context, language: string): Promise<Outcome> {
  const kind = checked(language);
  const { removed } = await context.withNode((client) => client.removeRuntime(kind, context));
  return { data: { removed }, text: removed ? `${plain(language)} is gone.` : `${plain(language)} was not there.` };
}

const ADDED = ['julia', 'python', 'vm'];

function checked(language: string): string {
  const name = language.toLowerCase();
  // The emulator of virtual machines by its own name.
  if (name === 'qemu') return 'vm';
  if (ADDED.includes(name)) return name;
  const others =
    name === 'wasm' || name === 'container'
      ? 'It is part of every node: `hypermesh runtime list` shows whether it can run here.'
      : 'Programs in other languages bring a container image: `hypermesh new container DIR` makes such a package.';
  throw new HyperMeshError(
    'usage',
    `"${language.slice(0, 50)}" is nothing that is added to a node: julia, python and vm are.`,
    { hint: others },
  );
}
