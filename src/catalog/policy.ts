import { HyperMeshError } from '../base/errors.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { RunRequest, RuntimeKind, SandboxPolicy } from '../capabilities/vm.ts';
import type { LockedPackage } from '../wire/lock.ts';
import type { PackageManifest } from '../wire/manifest.ts';

const DEFAULTS = {
  memoryBytes: 256 * 2 ** 20,
  cpuCores: 1,
  wallMs: 60_000,
  outputBytes: 16 * 2 ** 20,
  tmpBytes: 64 * 2 ** 20,
};

/** What the person who runs a package may ask for: less than the package does, never more. */
export interface RunLimits {
  readonly memoryBytes?: number;
  readonly wallMs?: number;
  readonly cpuCores?: number;
  readonly tmpBytes?: number;
  readonly outputBytes?: number;
  /** Instructions, of programs that are metered: WebAssembly. */
  readonly fuel?: number;
}

/** An unknown language runs as a container. */
function runtimeFor(manifest: PackageManifest): RuntimeKind {
  switch (manifest.language) {
    case 'wasm':
    case 'julia':
    case 'python':
      return manifest.language;
    default:
      return manifest.type === 'virtual-machine' ? 'vm' : 'container';
  }
}

/** What runs of a package, as the runtimes understand it. Errors: `not-runnable`. */
export function programOf(
  { name, version, type, manifest }: Pick<AssetRecord, 'name' | 'version' | 'type' | 'manifest'>,
  args: readonly string[],
): Pick<RunRequest, 'kind' | 'entry' | 'args' | 'julia'> {
  const { entry, image, language, julia } = manifest;
  const kind = runtimeFor(manifest);
  if (kind === 'container' && image !== undefined) {
    // The file of the package is what the image starts.
    return { kind, entry: image, args: entry === undefined ? args : [`/package/${entry}`, ...args] };
  }
  if (entry === undefined || language === undefined) {
    throw new HyperMeshError('not-runnable', `${name}@${version} is a ${type} without language and entry.`, {
      hint: 'Only packages that declare `language` and `entry`, or `image`, in catalog.yaml can be run.',
    });
  }
  if (kind === 'container') {
    throw new HyperMeshError(
      'not-runnable',
      `${name}@${version} is written in ${language}, which runs in a container, but it brings no image.`,
      { hint: 'Put a container image into the package, and name it by `image` in catalog.yaml.' },
    );
  }
  return { kind, entry, args, ...(julia === undefined ? {} : { julia }) };
}

/**
 * The stricter of manifest and request wins; nothing that neither names is open. Processors are a share, so the node's own limit is one of the
 * request: a program that wants more of them than there are is slower, not refused. Errors: `policy-refused`.
 */
export function policyFor(
  record: AssetRecord,
  dependencies: readonly LockedPackage[],
  environment: Readonly<Record<string, string>>,
  limits: RunLimits & { readonly cpuCores: number },
): SandboxPolicy {
  const { resources, sandbox } = record.manifest;
  const refused = Object.keys(environment).find((key) => !sandbox.environment.includes(key));
  if (refused !== undefined) {
    throw new HyperMeshError('policy-refused', `${record.name} does not accept the environment variable ${refused}.`, {
      hint: `It accepts: ${sandbox.environment.join(', ') || 'none'}.`,
    });
  }
  const wallMs = resources.timeoutSeconds === undefined ? undefined : resources.timeoutSeconds * 1_000;
  return {
    memoryBytes: stricter(resources.memory ?? DEFAULTS.memoryBytes, limits.memoryBytes),
    cpuCores: stricter(resources.cpuCores ?? DEFAULTS.cpuCores, limits.cpuCores),
    wallMs: stricter(wallMs ?? DEFAULTS.wallMs, limits.wallMs),
    outputBytes: stricter(resources.output ?? DEFAULTS.outputBytes, limits.outputBytes),
    tmpBytes: stricter(resources.disk ?? DEFAULTS.tmpBytes, limits.tmpBytes),
    ...(limits.fuel === undefined ? {} : { fuel: BigInt(limits.fuel) }),
    network: sandbox.network,
    ...(sandbox.connect === undefined ? {} : { connect: sandbox.connect }),
    ...(sandbox.folders === undefined
      ? {}
      : { folders: Object.entries(sandbox.folders).map(([name, access]) => ({ name, access })) }),
    environment,
    // The program's own layer is at /package already.
    mounts: dependencies.flatMap((entry) => entry.layers.map((layer) => ({ layer, at: `/packages/${entry.name}` }))),
  };
}

function stricter(declared: number, asked: number | undefined): number {
  return Math.min(declared, asked ?? declared);
}
