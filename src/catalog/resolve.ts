import { setImmediate } from 'node:timers/promises';
import semver from 'semver';
import { HyperMeshError } from '../base/errors.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { Lock, LockedPackage } from '../wire/lock.ts';
import { LOCK_LIMITS } from '../wire/lock.ts';
import type { PackageManifest } from '../wire/manifest.ts';
import type { PackageName } from '../wire/names.ts';

/** What the resolver needs to know of one version; an {@link AssetRecord} is one. */
export interface Candidate extends Pick<AssetRecord, 'name' | 'version' | 'id' | 'digest' | 'layers' | 'state'> {
  readonly manifest: Pick<PackageManifest, 'dependencies' | 'optionalDependencies' | 'peerDependencies'>;
}

/** Where versions come from; the `assets` capability is one. Each name is asked for once. */
export interface VersionSource {
  versions(name: PackageName): Promise<readonly Candidate[]>;
}

export interface ResolveOptions {
  /** What is installed now. Leave out the packages that an update should move. */
  readonly locked?: Lock;
  /** `locked` keeps a locked version where it still fits; `newest` is the default. */
  readonly prefer?: 'newest' | 'locked';
  readonly signal?: AbortSignal | undefined;
  /** Candidates looked at before giving up with `limit-exceeded`. */
  readonly stepsMax?: number;
}

const STEPS_MAX = 200_000;
const CONFLICTS_KEPT = 8;

/**
 * Chooses one version of every package that is needed, so that all ranges hold.
 *
 * - The requested packages come first, in the order of their names: each is as new as possible given those before it; then what they need.
 * - Optional dependencies are added afterwards where they fit; they never change what was chosen before.
 * - A peer must be brought by the request or by somebody's dependency, in a version that satisfies.
 * - A yanked version is chosen only if it is locked, and, unless locked versions are preferred, only as the last resort.
 * - A pre-release is chosen only if a range names it (semver's own rule).
 *
 * Errors: `package-not-found`, `version-not-found` (for what was requested itself), `dependency-conflict` (with the chain of demands),
 * `dependency-cycle`, `limit-exceeded`, `cancelled`.
 */
export async function resolve(
  requested: Readonly<Record<string, string>>,
  source: VersionSource,
  options: ResolveOptions = {},
): Promise<Lock> {
  const catalog = new Candidates(source, options);
  const demands = Object.entries(requested)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, range]): Demand => ({ by: null, name: name as PackageName, range, kind: 'required' }));
  for (const demand of demands) await checkRequested(demand, catalog);

  const search = new Search(catalog, options, { cyclesAllowed: false });
  if (!(await search.run(demands))) throw await explain(search, demands, catalog, options);
  await search.addOptional();
  return {
    formatVersion: 1,
    requested: Object.fromEntries(demands.map((d) => [d.name, d.range])),
    packages: lockOf(search.chosen),
  };
}

/** The newest version in the range that is not yanked; `versions` in any order. */
export function newestIn<C extends Pick<Candidate, 'version' | 'state'>>(
  versions: readonly C[],
  range: string,
): C | null {
  const fitting = versions.filter(({ version, state }) => state !== 'yanked' && semver.satisfies(version, range));
  return fitting.reduce<C | null>((best, one) => (best && semver.gte(best.version, one.version) ? best : one), null);
}

interface Demand {
  /** Who demands; null for the request itself. */
  readonly by: Candidate | null;
  readonly name: PackageName;
  readonly range: string;
  readonly kind: 'required' | 'peer';
}

/** Why one attempt failed, with the state of that moment already put into words. */
type Conflict =
  | {
      readonly kind: 'ranges' | 'peer';
      readonly name: PackageName;
      /** `a/x@1.0.0 needs c/z ^1` */
      readonly demands: readonly string[];
      /** How each demanding package came in. */
      readonly chains: readonly string[];
    }
  | { readonly kind: 'cycle'; readonly path: readonly string[] };

/** Versions of each name in order of preference, fetched once. */
class Candidates {
  readonly #source: VersionSource;
  readonly #known = new Map<PackageName, readonly Candidate[]>();
  readonly #locked: ReadonlyMap<PackageName, LockedPackage>;
  readonly #lockedFirst: boolean;

  constructor(source: VersionSource, options: ResolveOptions) {
    this.#source = source;
    this.#locked = new Map(options.locked?.packages.map((entry) => [entry.name, entry]));
    this.#lockedFirst = options.prefer === 'locked';
  }

  async of(name: PackageName): Promise<readonly Candidate[]> {
    const known = this.#known.get(name);
    if (known) return known;
    const lockedId = this.#locked.get(name)?.id;
    const rank = (one: Candidate) => (one.id === lockedId && this.#lockedFirst ? 0 : one.state === 'yanked' ? 2 : 1);
    const versions = (await this.#source.versions(name))
      .filter((one) => one.state !== 'yanked' || one.id === lockedId)
      .sort((a, b) => rank(a) - rank(b) || semver.rcompare(a.version, b.version));
    this.#known.set(name, versions);
    return versions;
  }
}

/**
 * Depth-first search with conflict-directed backjumping. A failure is a set of package names: no solution exists while those keep their
 * versions. On the way back, a package that is not in the set is left without trying its other versions, which could not help.
 */
class Search {
  /** In the order of `#queue`, whose first entries these are. */
  readonly chosen = new Map<PackageName, Candidate>();
  /** The first few failures, for the explanation. */
  readonly conflicts: Conflict[] = [];
  readonly #catalog: Candidates;
  readonly #signal: AbortSignal | undefined;
  readonly #cyclesAllowed: boolean;
  readonly #stepsMax: number;
  #steps = 0;
  /** What must be chosen, in the order in which it was first demanded. */
  readonly #queue: PackageName[] = [];
  readonly #queued = new Set<PackageName>();
  readonly #demands = new Map<PackageName, Demand[]>();
  /** Every demand in the order made, so that choices can be taken back. */
  readonly #trail: Demand[] = [];

  constructor(catalog: Candidates, options: ResolveOptions, { cyclesAllowed }: { cyclesAllowed: boolean }) {
    this.#catalog = catalog;
    this.#signal = options.signal;
    this.#cyclesAllowed = cyclesAllowed;
    this.#stepsMax = options.stepsMax ?? STEPS_MAX;
  }

  async run(demands: readonly Demand[]): Promise<boolean> {
    this.#demand(demands);
    return (await this.#solve()) === null;
  }

  /** Tries each optional dependency of what is chosen, and of what that brings in; leaves out what does not fit. */
  async addOptional(): Promise<void> {
    for (const one of this.chosen.values()) {
      for (const [name, range] of entries(one.manifest.optionalDependencies)) {
        if (this.chosen.has(name)) continue;
        const mark = this.#mark();
        this.#demand([{ by: one, name, range, kind: 'required' }]);
        // What was chosen before is not on the path of this call, so it stays as it is.
        if ((await this.#solve()) !== null) this.#takeBack(mark);
      }
    }
  }

  /** Null when everything demanded is chosen; else the names that are to blame. */
  async #solve(): Promise<Set<PackageName> | null> {
    const name = this.#queue[this.chosen.size];
    if (name === undefined) return this.#missingPeer() ?? this.#cycle();
    // The name must be chosen because somebody demands it: that demand is part of every reason below.
    const demands = this.#demands.get(name)!;
    const blame = new Set<PackageName>();
    addName(blame, demands.find(({ kind }) => kind === 'required')!.by);
    for (const candidate of await this.#catalog.of(name)) {
      await this.#step();
      const against = demands.find(({ range }) => !semver.satisfies(candidate.version, range));
      if (against) {
        addName(blame, against.by);
        continue;
      }
      const mark = this.#mark();
      this.chosen.set(name, candidate);
      this.#demand(demandsOf(candidate));
      const failure = (await this.#lookAhead(candidate)) ?? (await this.#solve());
      if (failure === null) return null;
      this.#takeBack(mark);
      if (!failure.delete(name)) return failure;
      for (const one of failure) blame.add(one);
    }
    return blame;
  }

  /** Are all demands on what this version needs still possible together? */
  async #lookAhead(candidate: Candidate): Promise<Set<PackageName> | null> {
    for (const { name } of demandsOf(candidate)) {
      const demands = this.#demands.get(name)!;
      const fits = ({ version }: Candidate) => demands.every(({ range }) => semver.satisfies(version, range));
      const chosen = this.chosen.get(name);
      if (chosen ? fits(chosen) : (await this.#catalog.of(name)).some(fits)) continue;
      this.#record('ranges', name, demands);
      const blame = new Set<PackageName>(chosen ? [name] : []);
      for (const { by } of demands) addName(blame, by);
      return blame;
    }
    return null;
  }

  /** Any other choice might bring the peer in, so all of them are to blame. */
  #missingPeer(): Set<PackageName> | null {
    for (const [name, demands] of this.#demands) {
      if (demands.length === 0 || this.chosen.has(name)) continue;
      this.#record('peer', name, demands);
      return new Set(this.chosen.keys());
    }
    return null;
  }

  #cycle(): Set<PackageName> | null {
    const cycle = this.#cyclesAllowed ? null : findCycle(this.chosen);
    if (cycle === null) return null;
    if (this.conflicts.length < CONFLICTS_KEPT) {
      this.conflicts.push({ kind: 'cycle', path: [...cycle, cycle[0]!].map((name) => ref(this.chosen.get(name)!)) });
    }
    return new Set(cycle);
  }

  async #step(): Promise<void> {
    this.#steps++;
    if (this.#steps > this.#stepsMax) {
      throw new HyperMeshError('limit-exceeded', `No solution was found in ${this.#stepsMax} steps.`, {
        hint: 'Ask for narrower ranges, or for fewer packages at once.',
      });
    }
    // Versions that are already fetched resolve without leaving the microtask queue: let others run now and then.
    if (this.#steps % 256 === 0) await setImmediate();
    if (this.#signal?.aborted) {
      throw new HyperMeshError('cancelled', 'The resolution was cancelled.', { cause: this.#signal.reason });
    }
  }

  #demand(demands: readonly Demand[]): void {
    for (const demand of demands) {
      const others = this.#demands.get(demand.name);
      if (others) others.push(demand);
      else this.#demands.set(demand.name, [demand]);
      this.#trail.push(demand);
      if (demand.kind === 'required' && !this.#queued.has(demand.name)) {
        this.#queued.add(demand.name);
        this.#queue.push(demand.name);
      }
    }
  }

  #mark() {
    return { chosen: this.chosen.size, queue: this.#queue.length, trail: this.#trail.length };
  }

  #takeBack(mark: { chosen: number; queue: number; trail: number }): void {
    for (const name of this.#queue.slice(mark.chosen)) this.chosen.delete(name);
    for (const name of this.#queue.splice(mark.queue)) this.#queued.delete(name);
    for (const { name } of this.#trail.splice(mark.trail).reverse()) this.#demands.get(name)!.pop();
  }

  #record(kind: 'ranges' | 'peer', name: PackageName, demands: readonly Demand[]): void {
    if (this.conflicts.length >= CONFLICTS_KEPT) return;
    this.conflicts.push({
      kind,
      name,
      demands: demands.map(({ by, range }) =>
        by ? `${ref(by)} needs ${name} ${range}` : `you asked for ${name} ${range}`,
      ),
      chains: demands.flatMap(({ by }) => (by ? [`${ref(by)} is there because ${this.#because(by)}`] : [])),
    });
  }

  /** The demands that led to a chosen version, from the request on. */
  #because(candidate: Candidate): string {
    const steps: string[] = [];
    let name: PackageName | null = candidate.name;
    while (name !== null) {
      const { by, range }: Demand = this.#demands.get(name)!.find(({ kind }) => kind === 'required')!;
      steps.unshift(by ? `${ref(by)} needs ${name} ${range}` : `you asked for ${name} ${range}`);
      name = by?.name ?? null;
    }
    return steps.length > 6 ? [...steps.slice(0, 3), '…', ...steps.slice(-2)].join(', ') : steps.join(', ');
  }
}

function demandsOf(by: Candidate): Demand[] {
  return [
    ...entries(by.manifest.dependencies).map(([name, range]): Demand => ({ by, name, range, kind: 'required' })),
    ...entries(by.manifest.peerDependencies).map(([name, range]): Demand => ({ by, name, range, kind: 'peer' })),
  ];
}

function entries(ranges: Readonly<Record<string, string>>): [PackageName, string][] {
  return (Object.entries(ranges) as [PackageName, string][]).sort(([a], [b]) => (a < b ? -1 : 1));
}

function addName(names: Set<PackageName>, candidate: Candidate | null): void {
  if (candidate) names.add(candidate.name);
}

function ref({ name, version }: Candidate): string {
  return `${name}@${version}`;
}

/** A cycle of required dependencies, or null. Optional and peer dependencies may point back: they do not decide what must be there. */
function findCycle(chosen: ReadonlyMap<PackageName, Candidate>): PackageName[] | null {
  const done = new Set<PackageName>();
  for (const start of chosen.keys()) {
    // An explicit stack: a chain of packages may be longer than the call stack.
    const path: { name: PackageName; rest: PackageName[] }[] = [];
    const onPath = new Set<PackageName>();
    const enter = (name: PackageName) => {
      onPath.add(name);
      path.push({ name, rest: entries(chosen.get(name)!.manifest.dependencies).map(([next]) => next) });
    };
    if (!done.has(start)) enter(start);
    for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
      const next = top.rest.shift();
      if (next === undefined) {
        done.add(top.name);
        onPath.delete(top.name);
        path.pop();
      } else if (onPath.has(next)) {
        return path.map(({ name }) => name).slice(path.findIndex(({ name }) => name === next));
      } else if (!done.has(next)) enter(next);
    }
  }
  return null;
}

function lockOf(chosen: ReadonlyMap<PackageName, Candidate>): LockedPackage[] {
  if (chosen.size > LOCK_LIMITS.packagesMax) {
    throw new HyperMeshError(
      'limit-exceeded',
      `The request needs ${chosen.size} packages; an installation holds at most ${LOCK_LIMITS.packagesMax}.`,
    );
  }
  return [...chosen.values()]
    .map(({ name, version, id, digest, layers, manifest }): LockedPackage => {
      const ranges = { ...manifest.optionalDependencies, ...manifest.peerDependencies, ...manifest.dependencies };
      const dependencies = entries(ranges).flatMap(([needed, range]) => {
        const one = chosen.get(needed);
        return one && semver.satisfies(one.version, range) ? [needed] : [];
      });
      return { name, version, id, digest, layers, dependencies };
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** What the user asked for directly has its own, simpler errors. */
async function checkRequested({ name, range }: Demand, catalog: Candidates): Promise<void> {
  const versions = await catalog.of(name);
  if (versions.some(({ version }) => semver.satisfies(version, range))) return;
  if (versions.length === 0) {
    throw new HyperMeshError('package-not-found', `No package ${name} is known here, or all its versions are yanked.`, {
      hint: 'Check the spelling with `hypermesh search`.',
      details: { name },
    });
  }
  throw new HyperMeshError('version-not-found', `No version of ${name} satisfies ${range}. ${listVersions(versions)}`, {
    hint: 'Ask for a range that includes one of these; a pre-release must be named.',
    details: { name, range, versions: versions.slice(0, 20).map(({ version }) => version) },
  });
}

function listVersions(versions: readonly Candidate[]): string {
  if (versions.length === 0) return 'No version is known here.';
  const some = semver.rsort(versions.map(({ version }) => version)).slice(0, 8);
  return `There are: ${some.join(', ')}${versions.length > 8 ? `, and ${versions.length - 8} more` : ''}.`;
}

async function explain(
  failed: Search,
  demands: readonly Demand[],
  catalog: Candidates,
  options: ResolveOptions,
): Promise<HyperMeshError> {
  const cycle = failed.conflicts.find(({ kind }) => kind === 'cycle');
  if (cycle?.kind === 'cycle') {
    // Is the cycle the only obstacle? Then it is the message.
    if (await new Search(catalog, options, { cyclesAllowed: true }).run(demands)) {
      return new HyperMeshError(
        'dependency-cycle',
        `Packages depend on each other in a circle: ${cycle.path.join(' -> ')}.`,
        {
          hint: 'One of their publishers must remove a dependency; until then ask for older versions.',
          details: { path: cycle.path },
        },
      );
    }
  }
  const lines: string[] = [];
  const seen = new Set<string>();
  const asked = new Set<string>();
  for (const conflict of failed.conflicts) {
    if (conflict.kind === 'cycle' || lines.length >= 12) continue;
    const [first, ...rest] = conflict.demands;
    const clash = [first, ...rest.map((one) => `but ${one}`)].join(', ');
    if (seen.has(clash)) continue;
    const versions = await catalog.of(conflict.name);
    const why =
      conflict.kind === 'peer'
        ? `as a peer, and nothing that was asked for brings ${conflict.name}.`
        : versions.length === 0
          ? `and that package is not known here, or all its versions are yanked.`
          : `and no version is in ${rest.length === 0 ? 'that range' : 'all of these ranges'}. ${listVersions(versions)}`;
    lines.push(`${seen.size === 0 ? '' : 'With other versions: '}${clash}; ${why}`);
    for (const chain of conflict.chains) if (!seen.has(chain)) lines.push(`  ${chain}.`);
    for (const text of [clash, ...conflict.chains]) seen.add(text);
    for (const chain of conflict.chains) asked.add(/you asked for (\S+)/.exec(chain)?.[1] ?? '');
    if (conflict.kind === 'peer') {
      lines.push(`  Ask for ${conflict.name} too, in a version that fits.`);
    }
  }
  asked.delete('');
  return new HyperMeshError('dependency-conflict', lines.join('\n'), {
    hint: `Try another range for ${[...asked].join(' or ') || 'what you asked for'}, or install them in separate folders.`,
    details: { conflicts: failed.conflicts },
  });
}
