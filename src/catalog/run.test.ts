import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { type Folder, PROJECT, SMALL_NETWORK, temporaryFolder } from '../../test/system/support.ts';
import { systemClock } from '../base/clock.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { RunRequest, SandboxPolicy } from '../capabilities/vm.ts';
import { HyperMesh } from '../hypermesh.ts';
import type { CatalogContext, Lent } from './context.ts';
import { openPackage } from './open.ts';
import { policyFor } from './policy.ts';
import { run } from './run.ts';

const REF = 'my-scope/my-package';

let folder: Folder;
let hypermesh: HyperMesh;
/** What was called, in order. */
let calls: string[] = [];
/** Calls that fail, or do something else, this time. */
let instead: Readonly<Record<string, (...args: never[]) => unknown>> = {};
let context: CatalogContext;

before(async () => {
  folder = await temporaryFolder();
  hypermesh = await HyperMesh.create({ home: join(folder.path, 'home'), network: SMALL_NETWORK });
  const catalog = await hypermesh.loadExtension('catalog');
  const staged = await hypermesh.stageFolder(join(PROJECT, 'templates', 'container'));
  await catalog.publishPackage(await catalog.signPackage(staged));
  const { assets, consensus, trust, vm, monitoring, resources } = hypermesh.node;
  const lent = { assets, consensus, trust, vm, monitoring, resources } as unknown as Lent;
  context = {
    lent: Object.fromEntries(
      Object.entries(lent).map(([name, capability]) => [name, watched(name, capability)]),
    ) as Lent,
    settings: { installRoot: join(folder.path, 'installed'), packageSizeMax: 2 ** 30, installConcurrency: 1 },
    clock: systemClock,
  };
});
after(async () => {
  await hypermesh.close();
  await folder[Symbol.asyncDispose]();
});
beforeEach(() => {
  calls = [];
  instead = {};
});

function watched(name: string, capability: object): object {
  return new Proxy(capability, {
    get(target, key) {
      const member = Reflect.get(target, key) as unknown;
      if (typeof member !== 'function' || typeof key !== 'string') return member;
      return (...args: never[]) => {
        calls.push(`${name}.${key}`);
        const other = instead[`${name}.${key}`];
        return other === undefined ? member.apply(target, args) : other(...args);
      };
    },
  });
}

/** What was unpacked of packages and images on the disk. */
async function unpacked(): Promise<string[]> {
  const vm = join(folder.path, 'home', 'vm');
  const lists = await Promise.all(['trees', 'containers'].map((name) => readdir(join(vm, name)).catch(() => [])));
  return lists.flat().filter((name) => name !== 'boot');
}

const fail = (code: 'signature-invalid' | 'proof-rejected') => () => {
  throw new HyperMeshError(code, 'Refused by the test.');
};
const leases = async () => (await hypermesh.node.resources.usage()).leases;

test('run() unpacks nothing of a package whose signature, endorsement or log does not hold, and gives the lease back', async () => {
  for (const step of ['trust.verify', 'consensus.verify', 'consensus.verifyEndorsement']) {
    instead = { [step]: fail('signature-invalid') };
    await assert.rejects(run(context, REF, null), { code: 'signature-invalid' }, step);
    assert.ok(!calls.some((call) => call.startsWith('vm.')), `${step}: ${calls.join(' ')}`);
    assert.deepEqual([await unpacked(), await leases()], [[], 0]);
  }
});

test('run() unpacks nothing before access is proved, and gives the lease back', async () => {
  for (const step of ['consensus.prove', 'consensus.admit']) {
    calls = [];
    instead = { [step]: fail('proof-rejected') };
    await assert.rejects(run(context, REF, null), { code: 'proof-rejected' }, step);
    assert.ok(!calls.includes('vm.run'), step);
    assert.deepEqual(
      calls.filter((call) => call === 'resources.allocate' || call === 'resources.release'),
      ['resources.allocate', 'resources.release'],
    );
    assert.deepEqual([await unpacked(), await leases()], [[], 0]);
  }
});

test('openPackage() hands out no layer that was not verified, or to which access was not proved', async () => {
  for (const step of ['trust.verify', 'consensus.verifyEndorsement', 'consensus.admit']) {
    instead = { [step]: fail('signature-invalid') };
    await assert.rejects(openPackage(context, REF), { code: 'signature-invalid' }, step);
  }
  instead = {};
  calls = [];
  const { layer } = await openPackage(context, REF);
  assert.match(layer, /^sha256:/);
  assert.ok(calls.indexOf('trust.verify') < calls.indexOf('consensus.admit'));
});

test('run() is a lease: held while the program runs, given back when it ends, fails or is cancelled', async (t) => {
  let held = 0;
  let asked: RunRequest | undefined;
  const result = { output: 1, usage: {}, termination: 'exit', exitCode: 0 };
  instead = {
    'vm.run': async (request: RunRequest) => {
      held = await leases();
      asked = request;
      return { ...result, usage: { wallMs: 1 } };
    },
  };
  await run(context, REF, { a: 1 }, { args: ['x'] });
  assert.deepEqual([held, await leases()], [1, 0]);
  assert.deepEqual(
    [asked?.kind, asked?.entry, asked?.args, asked?.subject?.ref],
    ['container', 'image', ['x'], `${REF}@0.1.0`],
  );
  const order = ['resources.allocate', 'trust.verify', 'consensus.admit', 'vm.run', 'resources.release'];
  assert.deepEqual(
    order.map((call) => calls.indexOf(call)).toSorted((a, b) => a - b),
    order.map((call) => calls.indexOf(call)),
  );

  instead = { 'vm.run': fail('proof-rejected') };
  await assert.rejects(run(context, REF, null));
  assert.equal(await leases(), 0);

  const controller = new AbortController();
  instead = {
    'vm.run': (_request: RunRequest, { signal }: { signal: AbortSignal }) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(new HyperMeshError('cancelled', 'Gave up.')));
        controller.abort();
      }),
  };
  await assert.rejects(run(context, REF, null, { signal: controller.signal }), (error) => isCoded(error, 'cancelled'));
  assert.equal(await leases(), 0);

  instead = {};
  const container = (await hypermesh.node.vm.runtimes()).find(({ kind }) => kind === 'container');
  if (container?.available !== true || process.arch !== 'x64') {
    t.skip(container?.reason ?? 'the image is for x64');
    return;
  }
  assert.deepEqual((await run(context, REF, { b: 2 })).output, { received: { b: 2 } });
  assert.equal((await unpacked()).length, 2, 'the package and its image');
  assert.equal(await leases(), 0);
});

test('executeJuliaPackage() refuses what is in another language', async () => {
  const catalog = await hypermesh.loadExtension('catalog');
  await assert.rejects(catalog.executeJuliaPackage(REF, null), { code: 'not-runnable' });
});

test('run() takes the stricter of manifest, request and node for each limit', async () => {
  const policies: SandboxPolicy[] = [];
  const leased: { cpuCores: number; durationMs: number }[] = [];
  instead = {
    'vm.run': async ({ policy }: RunRequest) => {
      policies.push(policy);
      return { output: 1, usage: { wallMs: 1 }, termination: 'exit', exitCode: 0 };
    },
    'resources.usage': async () => ({ capacity: { cpuCores: 4 } }),
    'resources.limits': async () => ({ cpuShare: 0.5 }),
    'resources.allocate': async (request: (typeof leased)[number]) => {
      leased.push(request);
      return { id: 'lease' };
    },
    'resources.release': async () => undefined,
  };
  const less = { memoryBytes: 1_000, wallMs: 1_001, cpuCores: 0.5, tmpBytes: 0, outputBytes: 1_002, fuel: 1_003 };
  const more = { memoryBytes: 2 ** 50, wallMs: 2 ** 50, cpuCores: 1_000, tmpBytes: 2 ** 50, outputBytes: 2 ** 50 };
  for (const limits of [less, more]) {
    const { policy } = await run(context, REF, null, { limits });
    assert.equal(policy.fuel, limits === less ? '1003' : undefined);
    assert.doesNotThrow(() => JSON.stringify(policy));
  }
  const [small, own] = policies;
  const pick = ({ memoryBytes, wallMs, cpuCores, tmpBytes, outputBytes, fuel }: SandboxPolicy) => ({
    ...{ memoryBytes, wallMs, cpuCores, tmpBytes, outputBytes, fuel },
  });
  assert.deepEqual(pick(small!), { ...less, fuel: 1_003n });
  const MiB = 2 ** 20;
  assert.deepEqual(pick(own!), {
    ...{ memoryBytes: 64 * MiB, wallMs: 60_000, cpuCores: 1, tmpBytes: 64 * MiB, outputBytes: 16 * MiB },
    fuel: undefined,
  });
  leased.forEach(({ cpuCores, durationMs }, index) => {
    assert.equal(cpuCores, policies[index]!.cpuCores);
    assert.ok(durationMs > policies[index]!.wallMs, 'the lease ends before the program');
  });
});

test('policyFor() gives a program that declares more processors than the node lends those of the node', async () => {
  const catalog = await hypermesh.loadExtension('catalog');
  const record = await catalog.resolve(REF);
  const { manifest } = record;
  const wide = { ...record, manifest: { ...manifest, resources: { ...manifest.resources, cpuCores: 64 } } };
  assert.equal(policyFor(wide, [], {}, { cpuCores: 1.5 }).cpuCores, 1.5);
});
