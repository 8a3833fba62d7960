import { utf8 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import { digestOf } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { hold } from '../base/lease.ts';
import { mapBounded, together } from '../base/streams.ts';
import type { Installation, InstalledPackage } from '../capabilities/assets.ts';
import type { ResourceRequest } from '../capabilities/resources.ts';
import type { Lock, LockedPackage } from '../wire/lock.ts';
import { type PackageName, parseRef } from '../wire/names.ts';
import type { InstallResult } from './api.ts';
import type { CatalogContext } from './context.ts';
import { resolve } from './resolve.ts';
import { bringContent } from './share.ts';
import { verifyRecord } from './verify.ts';
import { nearest } from './versions.ts';

export type InstallOptions = CallOptions & { readonly root: string };

/** Adds what `refs` ask for; what is installed already stays at its version where the new ranges allow it. */
export async function install(
  context: CatalogContext,
  refs: readonly string[],
  options: InstallOptions & { readonly locked?: boolean; readonly lock?: Lock },
): Promise<InstallResult> {
  const current = await context.lent.assets.installation(options.root);
  const asked = Object.fromEntries(refs.map(parseRef).map(({ name, range }) => [name, range]));
  if (options.locked === true) return switchTo(context, current, lockedExactly(options.lock, asked), options);
  const base = options.lock ?? current?.lock;
  const requested = { ...base?.requested, ...asked };
  return switchTo(context, current, await resolveLock(context, requested, base, options), options);
}

/** Removes packages from what was asked for; whatever nothing else needs goes with them. */
export async function uninstall(
  context: CatalogContext,
  names: readonly PackageName[],
  options: InstallOptions,
): Promise<InstallResult> {
  const current = await installedAt(context, options.root);
  const requested = { ...current.lock.requested };
  for (const name of names) {
    if (!(name in requested)) throw notAskedFor(name, current);
    delete requested[name];
  }
  return switchTo(context, current, await resolveLock(context, requested, current.lock, options), options);
}

/** The newest versions inside the ranges that were asked for. */
export async function update(
  context: CatalogContext,
  names: readonly PackageName[],
  options: InstallOptions,
): Promise<InstallResult> {
  const current = await installedAt(context, options.root);
  for (const name of names)
    if (!current.packages.some((entry) => entry.name === name)) throw notAskedFor(name, current);
  // Forgetting the locked version of a package is what lets it move.
  const kept = current.lock.packages.filter((entry) => names.length > 0 && !names.includes(entry.name));
  const lock = await resolveLock(context, current.lock.requested, { ...current.lock, packages: kept }, options);
  return switchTo(context, current, lock, options);
}

/** Back to what was installed before the last change; itself a change that can be rolled back. */
export async function rollback(context: CatalogContext, options: InstallOptions): Promise<InstallResult> {
  const current = await installedAt(context, options.root);
  const history = await context.lent.assets.installationHistory(options.root);
  const previous = history.find((entry) => entry.generation < current.generation);
  if (previous === undefined) {
    throw new HyperMeshError('not-installed', `${options.root} has no earlier state to go back to.`);
  }
  return switchTo(context, current, previous.lock, options);
}

export async function installed(context: CatalogContext, root: string): Promise<readonly InstalledPackage[]> {
  return (await context.lent.assets.installation(root))?.packages ?? [];
}

/**
 * The end of every change. What is installed moves in one atomic switch (`assets.install`, the commit point): a crash before
 * it leaves the set as it was, a crash after it leaves the new set.
 */
async function switchTo(
  context: CatalogContext,
  current: Installation | null,
  lock: Lock,
  options: InstallOptions,
): Promise<InstallResult> {
  const { lent } = context;
  const before = new Map((current?.packages ?? []).map((entry) => [entry.name, entry]));
  const arriving = lock.packages.filter((entry) => !isSame(before.get(entry.name), entry));
  await using _lease = await hold(lent.resources, leaseRequest(arriving), options); // quota-exceeded, cancelled
  if (arriving.length > 0) {
    await together(options.signal, [
      // A moment of one processor, while the others and the disk do the rest.
      (signal) => proveAccess(context, arriving, { ...options, signal }), // proof-*
      async (signal) => {
        await verifyAll(context, arriving, { ...options, signal }); // signature-*, certificate-*, endorsement-invalid, log-invalid, blob-*
        await bringAll(context, arriving, { ...options, signal }); // content-unavailable
        await lent.assets.prepareInstallation(options.root, lock, { ...options, signal }); // lock-invalid, storage-*
      },
    ]);
  }
  const after = await lent.assets.install(options.root, lock, {
    ...options,
    expectGeneration: current?.generation ?? 0,
  }); // installation-changed, storage-*
  const result = outcome(after, before);
  await lent.monitoring.emit({
    type: 'catalog.installed',
    data: {
      root: options.root,
      generation: after.generation,
      packages: arriving.map(({ name, version }) => `${name}@${version}`),
    },
  });
  return result;
}

async function resolveLock(
  { lent }: CatalogContext,
  requested: Readonly<Record<string, string>>,
  locked: Lock | undefined,
  options: CallOptions,
): Promise<Lock> {
  options.onProgress?.({ step: 'resolve', note: 'choosing versions' });
  try {
    return await resolve(requested, lent.assets, {
      ...(locked ? { locked } : {}),
      prefer: 'locked',
      signal: options.signal,
    });
  } catch (error) {
    const name = isCoded(error, 'package-not-found') ? error.details?.['name'] : undefined;
    if (typeof name !== 'string') throw error;
    throw new HyperMeshError('package-not-found', (error as Error).message, {
      hint: await nearest(lent.assets, name),
      details: { name },
    });
  }
}

/** With `--locked`, nothing is chosen: the lock file says everything, or it is out of date. */
function lockedExactly(lock: Lock | undefined, asked: Readonly<Record<string, string>>): Lock {
  const missing = Object.entries(asked).find(([name, range]) => {
    const locked = lock?.requested[name];
    return locked === undefined || (range !== '*' && locked !== range);
  });
  if (lock === undefined || missing !== undefined) {
    const what = lock === undefined ? 'there is no hypermesh.lock' : `it does not have ${missing![0]}@${missing![1]}`;
    throw new HyperMeshError('lock-outdated', `Expected a lock file that covers what was asked for, but ${what}.`, {
      hint: 'Run the same command without --locked, then keep the new hypermesh.lock.',
    });
  }
  return lock;
}

/** A lock file is anybody's text: what it says of a package holds when its record says the same. */
function isSame(
  known: Pick<LockedPackage, 'name' | 'version' | 'digest' | 'layers'> | undefined,
  entry: LockedPackage,
) {
  return (
    known !== undefined &&
    known.name === entry.name &&
    known.version === entry.version &&
    known.digest === entry.digest &&
    known.layers.join() === entry.layers.join()
  );
}

async function verifyAll(
  context: CatalogContext,
  packages: readonly LockedPackage[],
  options: CallOptions,
): Promise<void> {
  let done = 0;
  await mapBounded(packages, context.settings.installConcurrency, async (entry) => {
    options.signal?.throwIfAborted();
    const record = await context.lent.assets.get(entry.id);
    if (record === null || !isSame(record, entry)) {
      throw new HyperMeshError(
        'lock-outdated',
        `${entry.name}@${entry.version} is not in this catalog as hypermesh.lock has it (${entry.digest}).`,
        {
          hint: 'Restore hypermesh.lock from version control, or run `hypermesh update` to choose versions that exist.',
        },
      );
    }
    await verifyRecord(context, record, options);
    options.onProgress?.({ step: 'verify', done: ++done, total: packages.length, unit: 'packages' });
  });
}

/** Content that is on other nodes, of as many packages at once as are checked at once. */
async function bringAll(
  context: CatalogContext,
  packages: readonly LockedPackage[],
  options: CallOptions,
): Promise<void> {
  const use = { kind: 'install', resources: packages.map(({ digest }) => digest) } as const;
  await mapBounded(packages, context.settings.installConcurrency, async ({ id }) => {
    const record = await context.lent.assets.get(id);
    if (record !== null) await bringContent(context, record, use, options);
  });
}

/** Whoever takes content shows that it has space and a moment of time to spare; the serving node keeps the verdict. */
async function proveAccess(
  { lent }: CatalogContext,
  packages: readonly LockedPackage[],
  options: CallOptions,
): Promise<void> {
  const subject = digestOf(utf8(canonicalJson(packages.map((entry) => entry.digest).sort())));
  const challenge = await lent.consensus.challenge(
    'install',
    subject,
    packages.length === 1 ? packages[0]!.name : `${packages.length} packages`,
  );
  await lent.consensus.admit(await lent.consensus.prove(challenge, options), options);
}

async function installedAt({ lent }: CatalogContext, root: string): Promise<Installation> {
  const current = await lent.assets.installation(root);
  if (current === null) {
    throw new HyperMeshError('not-installed', `Nothing is installed in ${root}.`, {
      hint: 'Install something first: hypermesh install scope/name',
    });
  }
  return current;
}

function notAskedFor(name: PackageName, current: Installation): HyperMeshError {
  const through = current.lock.packages.filter((entry) => entry.dependencies.includes(name)).map((entry) => entry.name);
  return through.length > 0
    ? new HyperMeshError('has-dependents', `${name} is only there because of ${through.join(', ')}.`, {
        hint: `Uninstall ${through[0]} instead.`,
        details: { dependents: through },
      })
    : new HyperMeshError('not-installed', `${name} is not installed in ${current.root}.`, {
        hint: 'See what is: hypermesh list',
      });
}

function outcome(after: Installation, before: ReadonlyMap<PackageName, InstalledPackage>): InstallResult {
  const names = new Set(after.packages.map((entry) => entry.name));
  const isNew = (entry: InstalledPackage) => before.get(entry.name)?.digest !== entry.digest;
  return {
    root: after.root,
    generation: after.generation,
    installed: after.packages.filter(isNew),
    unchanged: after.packages.filter((entry) => !isNew(entry)),
    removed: [...before.keys()].filter((name) => !names.has(name)),
    lock: after.lock,
  };
}

function leaseRequest(arriving: readonly LockedPackage[]): ResourceRequest {
  const operation = arriving.length > 1 ? 'bulk_install' : 'install';
  return { operation, cpuCores: 0.5, memoryBytes: 128 * 2 ** 20, storageBytes: 0, priority: 'normal' };
}
