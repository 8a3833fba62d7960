import semver from 'semver';
import type { CallOptions } from '../base/call.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { hold } from '../base/lease.ts';
import type { AssetRecord, Installation } from '../capabilities/assets.ts';
import type { Resources } from '../capabilities/resources.ts';
import type { Lock, LockedPackage } from '../wire/lock.ts';
import { type PackageName, parseRef } from '../wire/names.ts';
import type { CatalogRun } from './api.ts';
import type { CatalogContext } from './context.ts';
import { policyFor, programOf, type RunLimits } from './policy.ts';
import { resolve } from './resolve.ts';
import { bringContent } from './share.ts';
import { verifyRecord } from './verify.ts';
import { newestInRange } from './versions.ts';

/** What comes before and after the program itself: proofs, content from other nodes, unpacking, the first compilation. */
const AROUND_MS = 600_000;
const LEASE_MS_MAX = 86_400_000;

export interface RunOptions extends CallOptions {
  readonly args?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly limits?: RunLimits;
}

/**
 * The execute ladder. The program and its files come from the verified content store, never from the folder of an
 * installation: editing an installed file does not change what runs.
 */
export async function run(
  context: CatalogContext,
  ref: string,
  input: Json,
  options: RunOptions = {},
): Promise<CatalogRun> {
  const { lent } = context;
  const installation = await lent.assets.installation(context.settings.installRoot);
  const record = (await installedInRange(context, installation, ref)) ?? (await newestInRange(lent.assets, ref)); // package-not-found, version-not-found
  const program = programOf(record, options.args ?? []); // not-runnable
  const dependencies = await dependenciesOf(context, record, installation?.lock, options); // dependency-*
  const cpuCores = Math.min(options.limits?.cpuCores ?? Number.POSITIVE_INFINITY, await coresOf(lent.resources));
  const limits = { ...options.limits, cpuCores };
  const policy = policyFor(record, dependencies, options.environment ?? {}, limits); // policy-refused

  await using _lease = await hold(
    lent.resources,
    {
      operation: 'execute',
      cpuCores: policy.cpuCores,
      memoryBytes: policy.memoryBytes,
      storageBytes: policy.tmpBytes,
      priority: 'normal',
      durationMs: Math.min(Math.ceil(policy.wallMs) + AROUND_MS, LEASE_MS_MAX),
    },
    options,
  ); // quota-exceeded, cancelled
  // Not before its turn: a hundred requests at once would keep the node from answering anybody while it verifies for all of them.
  await verifyClosure(context, record, dependencies, options); // signature-*, certificate-*, endorsement-invalid, log-invalid
  await proveAccess(context, record, options); // proof-*
  await bringClosure(context, record, dependencies, options); // content-unavailable
  options.onProgress?.({ step: 'run', note: `${record.name}@${record.version} in the ${program.kind} sandbox` });
  const result = await lent.vm.run(
    {
      ...program,
      layer: record.layers[0]!,
      input,
      policy,
      subject: { package: record.digest, ref: `${record.name}@${record.version}` },
    },
    options,
  ); // grant-needed, runtime-unavailable, program-invalid
  await lent.monitoring.emit({
    type: 'catalog.ran',
    data: {
      id: record.id,
      ref: `${record.name}@${record.version}`,
      termination: result.termination,
      exitCode: result.exitCode,
      wallMs: result.usage.wallMs,
    },
  });
  const { fuel, ...held } = policy;
  return {
    ...result,
    ref: `${record.name}@${record.version}`,
    id: record.id,
    policy: { ...held, ...(fuel === undefined ? {} : { fuel: String(fuel) }) },
  };
}

/** Processors that this node lends to programs. */
async function coresOf(resources: Resources): Promise<number> {
  const [{ capacity }, { cpuShare }] = await Promise.all([resources.usage(), resources.limits('execute')]);
  return Math.min(capacity.cpuCores, Math.max(1, cpuShare * capacity.cpuCores));
}

/** What is installed runs at the version it was installed at, as long as that is what was asked for. */
async function installedInRange(
  { lent }: CatalogContext,
  installation: Installation | null,
  ref: string,
): Promise<AssetRecord | null> {
  const { name, range } = parseRef(ref);
  const entry = installation?.packages.find(
    (one) => one.name === name && semver.satisfies(one.version, range, { includePrerelease: true }),
  );
  return entry === undefined ? null : lent.assets.get(entry.id);
}

async function dependenciesOf(
  { lent }: CatalogContext,
  record: AssetRecord,
  locked: Lock | undefined,
  options: CallOptions,
): Promise<readonly LockedPackage[]> {
  if (Object.keys({ ...record.manifest.dependencies, ...record.manifest.optionalDependencies }).length === 0) return [];
  const { packages } = await resolve({ [record.name]: record.version }, lent.assets, {
    ...(locked ? { locked } : {}),
    prefer: 'locked',
    signal: options.signal,
  });
  const byName = new Map(packages.map((entry) => [entry.name, entry]));
  const reached = new Set<PackageName>();
  function reach(name: PackageName): void {
    for (const next of byName.get(name)?.dependencies ?? []) {
      if (reached.has(next)) continue;
      reached.add(next);
      reach(next);
    }
  }
  reach(record.name);
  return packages.filter((entry) => reached.has(entry.name));
}

async function verifyClosure(
  context: CatalogContext,
  record: AssetRecord,
  dependencies: readonly LockedPackage[],
  options: CallOptions,
): Promise<void> {
  await verifyRecord(context, record, options);
  for (const entry of dependencies) {
    const dependency = await context.lent.assets.get(entry.id);
    if (dependency === null)
      throw new HyperMeshError('asset-not-found', `${entry.name}@${entry.version} is not in this catalog.`);
    await verifyRecord(context, dependency, options);
  }
}

/** Content that is on other nodes. */
async function bringClosure(
  context: CatalogContext,
  record: AssetRecord,
  dependencies: readonly LockedPackage[],
  options: CallOptions,
): Promise<void> {
  const use = { kind: 'execute', resources: [record, ...dependencies].map(({ digest }) => digest) } as const;
  await bringContent(context, record, use, options);
  for (const { id } of dependencies) {
    const dependency = await context.lent.assets.get(id);
    if (dependency !== null) await bringContent(context, dependency, use, options);
  }
}

async function proveAccess({ lent }: CatalogContext, record: AssetRecord, options: CallOptions): Promise<void> {
  const challenge = await lent.consensus.challenge('execute', record.digest, `${record.name}@${record.version}`);
  await lent.consensus.admit(await lent.consensus.prove(challenge, options), options);
}
