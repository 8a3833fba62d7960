import { z } from 'zod';
import type { CallOptions } from '../base/call.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { ExtensionRequest, PackageSpec } from '../capabilities/extension.ts';
import { digest } from '../wire/fields.ts';
import { packageName } from '../wire/names.ts';
import type { Catalog, PublishResult } from './api.ts';

/** What other extensions may ask the catalog through the host: method -> parameters and answer. */

type Served = Pick<Catalog, 'search' | 'info' | 'install' | 'uninstall' | 'update' | 'installed' | 'run' | 'verify'> & {
  publishPackage(spec: PackageSpec, options?: CallOptions): Promise<PublishResult>;
};

const ref = z.string().max(400);
const refs = z.array(ref).min(1).max(1_000);
const names = z.array(packageName).max(1_000);
const root = z.string().max(4_096).optional();

function method<S extends z.ZodType>(
  params: S,
  act: (catalog: Served, params: z.infer<S>, options: CallOptions) => Promise<unknown>,
) {
  return (catalog: Served, given: Json, options: CallOptions): Promise<unknown> => {
    const parsed = params.safeParse(given);
    if (parsed.success) return act(catalog, parsed.data, options);
    const issue = parsed.error.issues[0]!;
    throw new HyperMeshError('usage', `Parameter ${issue.path.join('.') || '(all)'}: ${issue.message}.`);
  };
}

const METHODS: Readonly<Record<string, ReturnType<typeof method>>> = {
  search: method(
    z.strictObject({ text: z.string().max(500), limit: z.int().min(1).max(100).optional() }),
    (catalog, { text, limit }) => catalog.search({ text, ...(limit === undefined ? {} : { limit }) }),
  ),
  info: method(z.strictObject({ ref }), (catalog, params) => catalog.info(params.ref)),
  list: method(z.strictObject({ root }), (catalog, params) => catalog.installed(params.root)),
  publish: method(
    z.strictObject({ manifestYaml: z.string().max(256 * 1024), layer: digest }),
    (catalog, params, options) => catalog.publishPackage(params, options),
  ),
  install: method(z.strictObject({ refs, root }), (catalog, params, options) =>
    catalog.install(params.refs, rooted(params.root, options)),
  ),
  uninstall: method(z.strictObject({ names, root }), (catalog, params, options) =>
    catalog.uninstall(params.names, rooted(params.root, options)),
  ),
  update: method(z.strictObject({ names, root }), (catalog, params, options) =>
    catalog.update(params.names, rooted(params.root, options)),
  ),
  run: method(z.strictObject({ ref, input: z.json().default(null) }), (catalog, params, options) =>
    catalog.run(params.ref, params.input, options),
  ),
  verify: method(z.strictObject({ ref }), (catalog, params, options) => catalog.verify({ ref: params.ref }, options)),
};

/** Errors: `usage` on an unknown method or bad parameters, then as the method itself. */
export async function answer(catalog: Served, request: ExtensionRequest, options: CallOptions = {}): Promise<Json> {
  const serve = Object.hasOwn(METHODS, request.method) ? METHODS[request.method] : undefined;
  if (serve === undefined) {
    throw new HyperMeshError('usage', `The catalog has no method "${request.method.slice(0, 100)}".`, {
      hint: `It has: ${Object.keys(METHODS).join(', ')}.`,
    });
  }
  return (await serve(catalog, request.params, options)) as Json;
}

function rooted(root: string | undefined, options: CallOptions): CallOptions & { readonly root?: string } {
  return root === undefined ? options : { ...options, root };
}
