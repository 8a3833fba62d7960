import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import semver from 'semver';
import { digestOf } from '../base/digest.ts';
import { type HyperMeshError, isCoded } from '../base/errors.ts';
import { checkLock, type Lock } from '../wire/lock.ts';
import { assetId, type PackageName } from '../wire/names.ts';
import { type Candidate, newestIn, resolve, type VersionSource } from './resolve.ts';

type Ranges = Record<string, string>;
type Universe = Record<string, { needs?: Ranges; optional?: Ranges; peer?: Ranges; yanked?: true }>;

/** `{ 'a/x@1.0.0': { needs: { 'c/z': '^1' } } }` as a source of versions. */
function sourceOf(universe: Universe): VersionSource {
  const all = Object.entries(universe).map(([ref, { needs = {}, optional = {}, peer = {}, yanked }]): Candidate => {
    const [name, version] = ref.split('@') as [PackageName, string];
    const digest = digestOf(Buffer.from(ref));
    return {
      name,
      version,
      digest,
      id: assetId('package', digest),
      layers: [digest],
      state: yanked ? 'yanked' : 'published',
      manifest: { dependencies: needs, optionalDependencies: optional, peerDependencies: peer },
    } as Candidate;
  });
  return { versions: async (name) => all.filter((one) => one.name === name) };
}

const refs = (lock: Lock) => lock.packages.map(({ name, version }) => `${name}@${version}`);
const solve = async (requested: Ranges, universe: Universe, options = {}) =>
  refs(await resolve(requested, sourceOf(universe), options));

async function refusal(requested: Ranges, universe: Universe, options = {}): Promise<HyperMeshError> {
  try {
    await resolve(requested, sourceOf(universe), options);
  } catch (error) {
    assert.ok(isCoded(error), String(error));
    return error;
  }
  return assert.fail('expected a refusal');
}

test('resolve() chooses the newest versions by precedence, not by text', async () => {
  const universe = {
    'a/x@9.0.0': { needs: { 'c/z': '*' } },
    'a/x@10.0.0': { needs: { 'c/z': '>=1' } },
    'c/z@1.9.0': {},
    'c/z@1.10.0': {},
  };
  assert.deepEqual(await solve({ 'a/x': '*' }, universe), ['a/x@10.0.0', 'c/z@1.10.0']);
});

test('resolve() goes back to an older version when the newest cannot be satisfied', async () => {
  const universe = {
    'a/x@2.0.0': { needs: { 'c/z': '^2' } },
    'a/x@1.0.0': { needs: { 'c/z': '^1' } },
    'b/y@1.0.0': { needs: { 'c/z': '^1' } },
    'c/z@1.0.0': {},
    'c/z@2.0.0': {},
  };
  assert.deepEqual(await solve({ 'a/x': '*', 'b/y': '*' }, universe), ['a/x@1.0.0', 'b/y@1.0.0', 'c/z@1.0.0']);
});

test('resolve() never chooses a pre-release that no range names', async () => {
  const universe = { 'a/x@1.0.0': {}, 'a/x@1.1.0-rc.1': {}, 'a/x@2.0.0-rc.1': {} };
  assert.deepEqual(await solve({ 'a/x': '>=1.0.0' }, universe), ['a/x@1.0.0']);
  assert.deepEqual(await solve({ 'a/x': '>=2.0.0-rc.0' }, universe), ['a/x@2.0.0-rc.1']);
});

test('resolve() skips a yanked version unless it is locked', async () => {
  const universe: Universe = { 'a/x@1.0.0': {}, 'a/x@1.1.0': { yanked: true } };
  assert.deepEqual(await solve({ 'a/x': '^1.0.0' }, universe), ['a/x@1.0.0']);
  const locked = await resolve({ 'a/x': '*' }, sourceOf({ 'a/x@1.1.0': {} }));
  assert.deepEqual(await solve({ 'a/x': '^1.0.0' }, universe, { locked, prefer: 'locked' }), ['a/x@1.1.0']);
  assert.deepEqual(await solve({ 'a/x': '^1.0.0' }, universe, { locked }), ['a/x@1.0.0']);
  assert.deepEqual(await solve({ 'a/x': '^1.1.0' }, universe, { locked }), ['a/x@1.1.0']);
});

test('resolve() keeps locked versions when asked to, and moves them when they no longer fit', async () => {
  const universe = { 'a/x@1.0.0': {}, 'a/x@1.1.0': {}, 'b/y@1.0.0': { needs: { 'a/x': '^1.1.0' } } };
  const locked = await resolve({ 'a/x': '1.0.0' }, sourceOf(universe));
  const options = { locked, prefer: 'locked' };
  assert.deepEqual(await solve({ 'a/x': '^1.0.0' }, universe, options), ['a/x@1.0.0']);
  assert.deepEqual(await solve({ 'a/x': '^1.0.0', 'b/y': '*' }, universe, options), ['a/x@1.1.0', 'b/y@1.0.0']);
});

test('resolve() adds optional dependencies that fit and leaves out those that do not, without moving anything else', async () => {
  const universe = {
    'a/x@1.0.0': { optional: { 'c/z': '^1', 'd/missing': '*', 'e/clash': '*' }, needs: { 'b/y': '^1' } },
    'b/y@1.0.0': {},
    'b/y@2.0.0': {},
    'c/z@1.0.0': { optional: { 'f/deep': '*' } },
    'e/clash@1.0.0': { needs: { 'b/y': '^2' } },
    'f/deep@1.0.0': {},
  };
  const lock = await resolve({ 'a/x': '*' }, sourceOf(universe));
  assert.deepEqual(refs(lock), ['a/x@1.0.0', 'b/y@1.0.0', 'c/z@1.0.0', 'f/deep@1.0.0']);
  assert.deepEqual(lock.packages[0]!.dependencies, ['b/y', 'c/z']);
});

test('resolve() wants peers from somebody else and in range', async () => {
  const universe = {
    'a/plugin@1.0.0': { peer: { 'h/host': '^1' } },
    'h/host@1.0.0': { needs: { 'a/plugin': '*' } },
    'h/host@2.0.0': {},
  };
  assert.deepEqual(await solve({ 'a/plugin': '*', 'h/host': '*' }, universe), ['a/plugin@1.0.0', 'h/host@1.0.0']);
  assert.deepEqual(await solve({ 'h/host': '^1' }, universe), ['a/plugin@1.0.0', 'h/host@1.0.0']);
  const missing = await refusal({ 'a/plugin': '*' }, universe);
  assert.equal(missing.code, 'dependency-conflict');
  assert.match(
    missing.message,
    /a\/plugin@1\.0\.0 needs h\/host \^1; as a peer.*\n.*you asked for a\/plugin \*\.\n.*Ask for h\/host too/,
  );
});

test('resolve() explains a conflict with both demands, their chains, what exists and what to try', async () => {
  const error = await refusal(
    { 'a/x': '^1', 'q/r': '*' },
    {
      'a/x@1.0.0': { needs: { 'c/z': '^1' } },
      'q/r@1.0.0': { needs: { 'b/y': '^2' } },
      'b/y@2.1.0': { needs: { 'c/z': '^2' } },
      'c/z@1.0.0': {},
      'c/z@2.0.0': {},
    },
  );
  assert.equal(error.code, 'dependency-conflict');
  assert.match(
    error.message,
    /a\/x@1\.0\.0 needs c\/z \^1, but b\/y@2\.1\.0 needs c\/z \^2; .* There are: 2\.0\.0, 1\.0\.0\./,
  );
  assert.match(error.message, /b\/y@2\.1\.0 is there because you asked for q\/r \*, q\/r@1\.0\.0 needs b\/y \^2\./);
  assert.match(error.hint!, /a\/x or q\/r/);
});

test('resolve() tells an unknown package from a missing version', async () => {
  assert.equal((await refusal({ 'a/x': '*' }, {})).code, 'package-not-found');
  const error = await refusal({ 'a/x': '^2' }, { 'a/x@1.0.0': {} });
  assert.equal(error.code, 'version-not-found');
  assert.match(error.message, /There are: 1\.0\.0/);
  const deep = await refusal({ 'a/x': '*' }, { 'a/x@1.0.0': { needs: { 'b/nowhere': '^1' } } });
  assert.match(deep.message, /a\/x@1\.0\.0 needs b\/nowhere \^1.*that package is not known here/);
});

test('resolve() refuses a circle, but takes a version outside it where there is one', async () => {
  const circle = {
    'a/x@2.0.0': { needs: { 'b/y': '*' } },
    'b/y@1.0.0': { needs: { 'c/z': '*' } },
    'c/z@1.0.0': { needs: { 'a/x': '*' } },
  };
  const error = await refusal({ 'a/x': '*' }, circle);
  assert.equal(error.code, 'dependency-cycle');
  assert.match(error.message, /a\/x@2\.0\.0 -> b\/y@1\.0\.0 -> c\/z@1\.0\.0 -> a\/x@2\.0\.0/);
  assert.deepEqual(await solve({ 'a/x': '*' }, { ...circle, 'a/x@1.0.0': {} }), ['a/x@1.0.0']);
});

test('resolve() gives up after its steps, and when it is cancelled', async () => {
  const universe = { 'a/x@1.0.0': { needs: { 'b/y': '*' } }, 'b/y@1.0.0': {} };
  assert.equal((await refusal({ 'a/x': '*' }, universe, { stepsMax: 1 })).code, 'limit-exceeded');
  assert.equal((await refusal({ 'a/x': '*' }, universe, { signal: AbortSignal.abort() })).code, 'cancelled');
});

test('resolve() does not multiply the versions of packages that have nothing to do with a conflict', async () => {
  const universe: Universe = { 'z/last@1.0.0': { needs: { 'z/gone': '*' } } };
  for (let name = 0; name < 12; name++)
    for (let major = 1; major < 10; major++) universe[`a/p${name}@${major}.0.0`] = {};
  const requested = {
    ...Object.fromEntries(Array.from({ length: 12 }, (_, name) => [`a/p${name}`, '*'])),
    'z/last': '*',
  };
  assert.equal((await refusal(requested, universe, { stepsMax: 100 })).code, 'dependency-conflict');
});

test('resolve() walks a chain of 3,000 packages', async () => {
  const universe: Universe = {};
  for (let i = 0; i < 3_000; i++) universe[`a/p${i}@1.0.0`] = i < 2_999 ? { needs: { [`a/p${i + 1}`]: '^1' } } : {};
  const byName = new Map<string, readonly Candidate[]>();
  for (const ref of Object.keys(universe))
    byName.set(
      ref.split('@')[0]!,
      await sourceOf({ [ref]: universe[ref]! }).versions(ref.split('@')[0] as PackageName),
    );
  const lock = await resolve({ 'a/p0': '*' }, { versions: async (name) => byName.get(name) ?? [] });
  assert.equal(lock.packages.length, 3_000);
});

test('newestIn() compares by precedence and passes over what is yanked', () => {
  const versions = ['1.9.0', '1.10.0', '2.0.0-rc.1'].map((version) => ({ version, state: 'published' as const }));
  assert.equal(newestIn(versions, '*')?.version, '1.10.0');
  assert.equal(newestIn([...versions, { version: '1.11.0', state: 'yanked' }], '^1')?.version, '1.10.0');
  assert.equal(newestIn(versions, '^3'), null);
});

// --- against every possible choice, on small random universes ---

const NAMES = ['a/a', 'b/b', 'c/c', 'd/d'];
const VERSIONS = ['1.0.0', '1.1.0', '2.0.0', '2.1.0-rc.1'];
const someRanges = fc.dictionary(
  fc.constantFrom(...NAMES),
  fc.constantFrom('*', '^1', '^2', '<2', '1.0.0', '>=2.1.0-rc.0'),
  {
    maxKeys: 2,
  },
);
const universes = fc
  .dictionary(
    fc.tuple(fc.constantFrom(...NAMES), fc.constantFrom(...VERSIONS)).map((pair) => pair.join('@')),
    fc.record({ needs: someRanges, peer: fc.oneof({ weight: 4, arbitrary: fc.constant({}) }, someRanges) }),
    { maxKeys: 12 },
  )
  .map(
    (universe): Universe =>
      Object.fromEntries(
        Object.entries(universe).map(([ref, { needs, peer }]) => {
          const self = ref.split('@')[0]!;
          const others = (ranges: Ranges) =>
            Object.fromEntries(Object.entries(ranges).filter(([name]) => name !== self));
          return [ref, { needs: others(needs), peer: others(peer) }];
        }),
      ),
  );

/** Every way to give each name one version or none; yields those that obey the rules. */
function* solutions(requested: Ranges, universe: Universe): Generator<Map<string, string>> {
  const options = NAMES.map((name) => [null, ...Object.keys(universe).filter((ref) => ref.startsWith(`${name}@`))]);
  const pick = function* (index: number, chosen: Map<string, string>): Generator<Map<string, string>> {
    if (index === NAMES.length) {
      if (obeys(requested, universe, chosen)) yield new Map(chosen);
      return;
    }
    for (const ref of options[index]!) {
      if (ref) chosen.set(NAMES[index]!, ref.split('@')[1]!);
      yield* pick(index + 1, chosen);
      chosen.delete(NAMES[index]!);
    }
  };
  yield* pick(0, new Map());
}

function obeys(requested: Ranges, universe: Universe, chosen: ReadonlyMap<string, string>): boolean {
  const holds = (ranges: Ranges = {}) =>
    Object.entries(ranges).every(([name, range]) => chosen.has(name) && semver.satisfies(chosen.get(name)!, range));
  const at = (name: string) => universe[`${name}@${chosen.get(name)}`]!;
  if (!holds(requested)) return false;
  if (![...chosen.keys()].every((name) => holds(at(name).needs) && holds(at(name).peer))) return false;
  // Nothing unasked for: all reached from the request by required dependencies, without coming back on the way.
  const reached = new Set<string>();
  const visit = (name: string, path: readonly string[]): boolean => {
    if (path.includes(name)) return false;
    reached.add(name);
    return Object.keys(at(name).needs ?? {}).every((next) => visit(next, [...path, name]));
  };
  return Object.keys(requested).every((name) => visit(name, [])) && reached.size === chosen.size;
}

test('resolve() finds a solution exactly when one exists, and the newest for what was requested', async () => {
  await fc.assert(
    fc.asyncProperty(
      universes,
      fc.dictionary(fc.constantFrom(...NAMES), fc.constantFrom('*', '^1', '<2'), { minKeys: 1, maxKeys: 3 }),
      async (universe, requested) => {
        const possible = [...solutions(requested, universe)];
        let lock: Lock;
        try {
          lock = await resolve(requested, sourceOf(universe));
        } catch (error) {
          assert.ok(
            isCoded(error, 'dependency-conflict', 'dependency-cycle', 'package-not-found', 'version-not-found'),
            String(error),
          );
          assert.deepEqual(possible, [], `refused with: ${error.message}`);
          assert.ok(error.message.length > 20);
          return;
        }
        checkLock(lock);
        const chosen = new Map(lock.packages.map(({ name, version }) => [name as string, version]));
        assert.ok(obeys(requested, universe, chosen), `not a solution: ${refs(lock)}`);
        const key = (one: ReadonlyMap<string, string>) =>
          Object.keys(requested)
            .sort()
            .map((name) => one.get(name)!);
        const newer = (a: string[], b: string[]) => {
          const at = a.findIndex((version, index) => version !== b[index]);
          return at >= 0 && semver.gt(a[at]!, b[at]!);
        };
        for (const other of possible)
          assert.ok(!newer(key(other), key(chosen)), `${key(other)} is newer than ${key(chosen)}`);
      },
    ),
    { numRuns: 600 },
  );
});
