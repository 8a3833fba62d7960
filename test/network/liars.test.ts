import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { base64 } from '../../src/base/bytes.ts';
import type { Ban, PeerInfo } from '../../src/capabilities/transport.ts';
import type { CatalogExtension } from '../../src/catalog/extension.ts';
import { HyperMesh } from '../../src/index.ts';
import { freePort } from '../../src/testing/free-port.ts';
import { until } from '../../src/testing/until.ts';
import { encodeBundle } from '../../src/wire/bundle.ts';
import { decodeGenesis } from '../../src/wire/genesis.ts';
import { encodeNodeRecord } from '../../src/wire/node-record.ts';
import { encodeStateChange } from '../../src/wire/state-change.ts';
import { encodeTerms, type SignedTerms } from '../../src/wire/terms.ts';
import { type Folder, SMALL_NETWORK, temporaryFolder, writePackage } from '../system/support.ts';
import type { ContentLie, LiarOrder } from './liar-child.ts';
import { join as joinNetwork, type MeshNode, meshNode, QUICK_PACE } from './mesh.ts';

/** What the user wants, one for each lie; large enough that both sources are asked for parts of it. */
const LARGE = 3 * 2 ** 20;
const CONTENT_LIES: Readonly<Record<ContentLie, { readonly bytes: number; readonly banned: RegExp | null }>> = {
  'wrong-bytes': { bytes: LARGE, banned: /wrong-bytes/ },
  'wrong-list': { bytes: LARGE, banned: /wrong-list/ },
  malformed: { bytes: LARGE, banned: /broken-protocol/ },
  'too-long': { bytes: LARGE, banned: /broken-protocol/ },
  endless: { bytes: 20_000, banned: /broken-protocol/ },
  // Each of these happens to honest nodes too.
  absent: { bytes: LARGE, banned: null },
  silent: { bytes: LARGE, banned: null },
  slow: { bytes: LARGE, banned: null },
};

let stack: AsyncDisposableStack;
/** Honest, a process of its own. */
let honest: MeshNode;
/** Its home joined honestly; then it was taken over. */
let liar: MeshNode;
let mallory: ChildProcess;
/** In this process, so that what it thinks can be seen. */
let user: HyperMesh;
let userId: string;
let catalog: CatalogExtension;
let folder: Folder;

before(async () => {
  stack = new AsyncDisposableStack();
  const peers = { pace: QUICK_PACE, uploadBytesPerSecond: 4 * 2 ** 20 };
  honest = stack.use(await meshNode({ peers }));
  liar = stack.use(await meshNode());
  folder = stack.use(await temporaryFolder());
  await Promise.all([honest.up(), liar.up()]);
  await honest.client.createNetwork({ listen: '127.0.0.1:0' });
  const port = await freePort();
  await joinNetwork(liar, honest, `127.0.0.1:${port}`);
  await until('both know each other', async () => (await honest.client.status()).transport.peers.alive === 1);
  const { networkId } = await honest.client.networkPlace();

  const home = join(folder.path, 'home');
  const pace = QUICK_PACE;
  user = stack.use(await HyperMesh.create({ home, network: SMALL_NETWORK, threads: 1, peers: { stays: false, pace } }));
  catalog = await user.loadExtension('catalog');
  const { invite } = await honest.client.invite({});
  userId = (await user.node.membership.join(invite)).node;
  for (const [name, { bytes }] of Object.entries(CONTENT_LIES)) await honest.publish(await package_(name, bytes));
  await until('the user heard of everything', async () => (await user.node.transport.status()).peers.alive === 2);
  await until('the user heard of everything', async () => (await catalog.search({})).total === names.length);

  await liar.end('SIGTERM');
  mallory = fork(new URL('./liar-child.ts', import.meta.url), [liar.home, String(port), networkId]);
  stack.defer(() => void mallory.kill('SIGKILL'));
  await once(mallory, 'message');
});

after(async () => {
  await stack.disposeAsync();
});

const names = Object.keys(CONTENT_LIES) as ContentLie[];

function package_(name: string, bytes: number): Promise<string> {
  const manifest = { name: `lies/${name}`, version: '1.0.0', type: 'library' };
  return writePackage(join(folder.path, name), manifest, { 'x.bin': randomBytes(bytes) });
}

async function order(what: LiarOrder): Promise<void> {
  mallory.send(what);
  const [{ error }] = (await once(mallory, 'message')) as [{ error?: string }];
  assert.equal(error, undefined);
}

async function liarAsSeen(): Promise<PeerInfo> {
  return (await user.node.transport.peers()).find(({ node }) => node === liar.id)!;
}

/** Banned for this reason, with evidence kept; the user lets it in again for the next lie. */
async function assertBanned(why: RegExp): Promise<void> {
  await until(`banned for ${why}`, async () => (await liarAsSeen()).state === 'banned');
  assert.match((await liarAsSeen()).reason ?? '', why);
  const { evidence, bannedAtMs } = await user.node.transport.ban(liar.id);
  assert.ok(evidence.length > 0);
  assert.equal((await liarAsSeen()).bannedAtMs, bannedAtMs);
  await user.node.transport.forgive(liar.id);
  await until('it is spoken to again', async () => (await liarAsSeen()).state === 'alive');
}

async function installs(name: ContentLie): Promise<number> {
  const root = join(folder.path, 'installed', name);
  const startedAt = performance.now();
  const { installed } = await catalog.install([`lies/${name}`], { root });
  const ms = performance.now() - startedAt;
  const [is, was] = await Promise.all(
    [installed[0]!.path, join(folder.path, name)].map((at) => readFile(join(at, 'x.bin'))),
  );
  assert.ok(is!.equals(was!));
  return ms;
}

describe('a member that lies about content', () => {
  for (const name of names) {
    const { banned } = CONTENT_LIES[name];
    it(`${name}: ${banned === null ? 'is passed over' : 'loses its place'}, and the user gets what was signed for`, async (t) => {
      await order({ lie: name });
      const { digest } = await catalog.resolve(`lies/${name}`);
      await order({ announce: [digest], to: userId });
      const ms = await installs(name);
      t.diagnostic(`${Math.round(ms)} ms`);
      assert.ok(ms < 300_000, `it took ${Math.round(ms)} ms`);
      if (banned === null) assert.notEqual((await liarAsSeen()).state, 'banned');
      else await assertBanned(banned);
      await order({ lie: 'absent' });
    });
  }
});

describe('a member that lies about records', () => {
  it('hands over a bundle that was altered: loses its place', async () => {
    const bundle = await catalog.bundle('lies/slow');
    const [vote] = bundle.endorsement.votes;
    const votes = [{ ...vote!, atMs: vote!.atMs + 1 }];
    const altered = { ...bundle, endorsement: { ...bundle.endorsement, votes } };
    await order({ tell: [base64(encodeBundle(altered))], collection: 'records', to: userId });
    await assertBanned(/breaks the rules/);
  });

  it('is shown to the owner of the node, with what it handed over, and forgiven by him', async () => {
    const bytes = randomBytes(100);
    // It may have met one of the lies that were meant for the user.
    await honest.run('peers', 'forgive', liar.id);
    const as = [`sha256:${randomBytes(32).toString('hex')}`] as const;
    await order({ tell: [base64(bytes)], as, collection: 'records', to: honest.id });
    type Bans = { bans: Ban[] };
    await until('it is banned', async () => (await honest.json<Bans>(['peers', 'bans'])).bans.length > 0);
    const [ban] = (await honest.json<Bans>(['peers', 'bans'])).bans;
    assert.deepEqual([ban!.node, ban!.evidenceBytes], [liar.id, 100]);
    assert.match(ban!.reason, /handed over/);
    const whole = await honest.json<Ban & { evidence: string }>(['peers', 'bans', liar.id]);
    assert.deepEqual(whole, { ...ban, evidence: base64(bytes) });
    const { stdout } = await honest.run('peers', 'bans', liar.id);
    assert.match(stdout, new RegExp(`${bytes.toString('hex').slice(0, 64)}\n`));
    await assert.rejects(honest.json(['peers', 'bans', userId]), /No banned node has the id/);
    await honest.json(['peers', 'forgive', liar.id]);
    assert.deepEqual(await honest.json(['peers', 'bans']), { bans: [] });
  });

  it('hands over something else than it told of: loses its place', async () => {
    const as = [`sha256:${randomBytes(32).toString('hex')}`] as const;
    await order({ tell: [base64(randomBytes(100))], as, collection: 'records', to: userId });
    await assertBanned(/handed over/);
  });

  it('deletes what another published: loses its place, and nothing is deleted', async () => {
    const { id, bundle } = await catalog.resolve('lies/slow');
    const { networkId } = await honest.client.networkPlace();
    const change = { asset: id, bundle, state: 'deleted', reason: null, sequence: 1, changedAtMs: Date.now() } as const;
    const sign = Buffer.from(encodeStateChange({ formatVersion: 1, network: networkId, ...change })).toString();
    await order({ sign, kind: 'state-change', to: userId });
    await assertBanned(/breaks the rules/);
    assert.equal((await catalog.resolve('lies/slow')).id, id);
  });

  it('says where another node lives: loses its place, and the other keeps its own', async () => {
    const { networkId } = await honest.client.networkPlace();
    const addresses = (await honest.client.status()).transport.addresses;
    const sequence = Date.now() + 1_000;
    const forged = {
      network: networkId,
      node: honest.id,
      addresses: ['127.0.0.1:1'],
      sequence,
      notAfterMs: sequence + 1,
    };
    const sign = Buffer.from(encodeNodeRecord({ formatVersion: 1, ...forged })).toString();
    await order({ sign, kind: 'node-record', to: userId });
    await assertBanned(/breaks the rules/);
    const seen = (await user.node.transport.peers()).find(({ node }) => node === honest.id);
    assert.deepEqual(seen?.addresses, addresses);
  });

  it('says that the network takes in anybody: loses its place, and nobody believes it', async () => {
    const { network } = await catalog.bundle('lies/slow');
    const { genesis, networkId } = decodeGenesis(network.genesis);
    const { key } = genesis.committee.validators[0]!;
    const forged: SignedTerms = {
      terms: {
        ...{ formatVersion: 1, networkId, version: 1, madeAtMs: Date.now(), founder: liar.id },
        open: { membersMax: 10, joinsPerHour: 10, joinsPerAddressPerHour: 10, workHexDigits: 1 },
      },
      attestation: {
        ...{ validator: key, path: [], index: 0, size: 1 },
        ed25519: base64(randomBytes(64)),
        falcon: base64(randomBytes(1280)),
      },
    };
    await order({ tell: [base64(encodeTerms(forged))], collection: 'terms', to: userId });
    await assertBanned(/breaks the rules/);
    assert.equal((await user.node.membership.place()).open, null);
  });

  it('answers a comparison with noise: loses its place', async () => {
    await order({ compare: base64(randomBytes(500)) });
    await until('it is banned', async () => (await liarAsSeen()).state === 'banned');
    // Honest again before it is forgiven: it is compared with at once.
    await order({ compare: null });
    await assertBanned(/protocol/);
  });

  it('replays what is over: nothing changes, and nobody is to blame', async () => {
    const bundle = base64(encodeBundle(await catalog.bundle('lies/absent')));
    await honest.client.delete('lies/absent@1.0.0');
    const gone = async () => (await catalog.search({ text: 'absent' })).total === 0;
    await until('it is deleted', gone);
    await order({ tell: [bundle], collection: 'records', to: userId });
    await user.node.transport.sync();
    assert.ok(await gone());
    assert.notEqual((await liarAsSeen()).state, 'banned');
  });
});

describe('a member that breaks the channel', () => {
  it('sends a frame that is too long: loses its place', async () => {
    // It may have met one of the lies that were meant for the user.
    await honest.run('peers', 'forgive', liar.id);
    const [address] = (await honest.client.status()).transport.addresses;
    // A busy node may give up on a handshake.
    await until('it got through', async () => {
      await order({ oversize: address! });
      return true;
    });
    const { peers } = await honest.json<{ peers: PeerInfo[] }>(['peers', 'list']);
    const { state, reason } = peers.find(({ node }) => node === liar.id)!;
    assert.equal(state, 'banned');
    assert.match(reason ?? '', /protocol/);
    const shown = await honest.run('peers', 'list');
    assert.match(shown.stdout, /banned.*protocol/);
    await honest.json(['peers', 'forgive', liar.id]);
  });
});
