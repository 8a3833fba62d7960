import { randomBytes } from 'node:crypto';
import { rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { ApiLog } from './api/node.ts';
import type { Auditor } from './audit/auditor.ts';
import type { Digest } from './base/digest.ts';
import type { VerifyResult } from './catalog/api.ts';
import type { Loaded } from './config.ts';
import type { Bundle } from './wire/bundle.ts';
import { encodeNodeFile } from './wire/node-file.ts';

export interface RunningNode extends AsyncDisposable {
  /** Base URL of its API. */
  readonly http: string;
  readonly token: string;
  readonly home: string;
  /** Why it does not listen to other nodes although it should; it tries again by itself. */
  readonly problem: string | null;
  /** Settles when a client asked the node to stop. */
  readonly stopAsked: Promise<void>;
}

export interface StartOptions {
  readonly log: ApiLog;
  /** Let other commands find the node through `HOME/node.json`. */
  readonly announce: boolean;
}

/** Configuration -> node with the catalog -> API. Disposed in reverse. Errors: `home-in-use`, `key-locked`, `config-invalid`, `extension-*`, `capability-not-granted`, `storage-*`. */
export async function startNode({ config, secrets }: Loaded, options: StartOptions): Promise<RunningNode> {
  const [{ HyperMesh }, { serve }] = await Promise.all([import('./hypermesh.ts'), import('./api/server.ts')]);
  await using stack = new AsyncDisposableStack();
  const { home, http, network, subject, threads, keptBoxes, extensions, peers } = config;
  const hypermesh = stack.use(
    await HyperMesh.create({
      home,
      network,
      ...secrets,
      ...(subject === undefined ? {} : { subject }),
      ...(threads === undefined ? {} : { threads }),
      ...(keptBoxes === undefined ? {} : { keptBoxes }),
      peers: { ...peers, stays: options.announce },
      log: (level, message, details = {}) =>
        options.log.info({ ...details, ...(level === 'warn' ? { warning: true } : {}) }, message),
    }),
  );
  const catalog = await hypermesh.loadExtension('catalog');
  for (const { folder, grants, mode, settings } of extensions) {
    await hypermesh.loadExtension({ folder }, { grants, mode, ...(settings === undefined ? {} : { settings }) });
  }
  const { node } = hypermesh;
  const { promise: stopAsked, resolve: stop } = Promise.withResolvers<void>();
  const token = randomBytes(32).toString('base64url');
  const { assets, trust, consensus, membership, transport, vm, monitoring } = node;
  const server = stack.use(
    await serve(
      {
        ...{ catalog, assets, trust, consensus, membership, transport, vm, monitoring, stop },
        status: () => node.status(),
        exportState: (callOptions) => node.exportState(callOptions),
        importState: (stream, callOptions) => node.importState(stream, callOptions),
      },
      { ...http, token },
      options.log,
    ),
  );
  if (options.announce) {
    const { version, startedAtMs } = await node.status();
    const file = path.join(home, 'node.json');
    const content = encodeNodeFile({
      formatVersion: 1,
      pid: process.pid,
      http: server.url,
      token,
      startedAtMs,
      version,
    });
    stack.defer(() => rm(file, { force: true }));
    await writePrivate(file, content);
  }
  const { problem } = await transport.status();
  const owned = stack.move();
  return { http: server.url, token, home, problem, stopAsked, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** A reader sees the file before or after, never half, and never with a mode that others can read. */
async function writePrivate(file: string, content: string): Promise<void> {
  const temporary = `${file}.${process.pid}.tmp`;
  await writeFile(temporary, content, { mode: 0o600, flag: 'w' });
  await rename(temporary, file);
}

/** Checks a bundle with nothing but itself: no home, no node. `network` pins the network it must belong to. Errors: as a verification. */
export async function verifyOffline(bundle: Bundle, network?: Digest): Promise<VerifyResult> {
  const { verifyBundleOffline } = await import('./hypermesh.ts');
  return verifyBundleOffline(bundle, network === undefined ? {} : { network });
}

/** For statements of validators, wherever they come from. */
export async function openAuditor(network?: Digest): Promise<Auditor> {
  const { openAuditor: open } = await import('./hypermesh.ts');
  return open(network);
}
