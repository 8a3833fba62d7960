import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { concat } from '../../../base/bytes.ts';
import { systemClock } from '../../../base/clock.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { once } from '../../../base/streams.ts';
import type { Resource } from '../../../capabilities/transport.ts';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import { cut, type MadeContent, noise } from '../../../testing/made-content.ts';
import { until } from '../../../testing/until.ts';
import { CODING_TYPE, type Coding, encodeCoding } from '../../../wire/coding.ts';
import { encodeSigned } from '../../../wire/signed.ts';
import { type AssetStore, openAssets } from '../../assets/index.ts';
import { type Answer, type Ask, systemTimers } from '../ask.ts';
import { Audit } from '../audit.ts';
import { Book } from '../book.ts';
import { Downloader, Shaper } from '../content/index.ts';
import type { Source } from '../content/source.ts';
import { CodingCollection } from '../records/codings.ts';
import { Replication } from '../replication.ts';
import { Coded } from './coded.ts';

const SIZE = 3 * 2 ** 20 + 12_345;
const content = cut(noise(SIZE, 'coded'));
const resource: Resource = { id: digestOf('a package'), blobs: [content.blob], replication: 2 };

const network = await CertifiedNetwork.found();
/** Keys take long to make. */
const members: CertifiedNode[] = [];
for (let at = 0; at < 7; at++) members.push(await network.node());

/** What a node has of all this, with its neighbours in the same process: stores, books, signatures and rules are real. */
class Home implements AsyncDisposable {
  readonly node: string;
  readonly certified: CertifiedNode;
  readonly assets: AssetStore;
  readonly book: Book;
  readonly replication: Replication;
  readonly collection: CodingCollection;
  readonly coded: Coded;
  readonly accused: string[] = [];
  readonly answers: ReadonlyMap<string, Answer>;
  #isAway = false;
  /** Gives other bytes than it has. */
  lies = false;
  readonly #mesh: Map<string, Home>;

  constructor(mesh: Map<string, Home>, certified: CertifiedNode, assets: AssetStore, book: Book, patienceMs: number) {
    this.#mesh = mesh;
    this.certified = certified;
    this.node = certified.node;
    this.assets = assets;
    this.book = book;
    const ask: Ask = async (to, method, body) => {
      const other = mesh.get(to)!;
      if (other.isAway) throw new HyperMeshError('peer-unreachable', 'It is away.');
      return other.answers.get(method)!(body, this.node);
    };
    const around = { ask, clock: systemClock, timers: systemTimers, random: Math.random };
    const audit = new Audit(around, {
      content: assets.exchange,
      isShared: (blob) => book.isShared(blob),
      missed: () => {},
    });
    this.collection = new CodingCollection({
      ...{ book, clock: systemClock, networkId: network.networkId, trust: certified.trust },
      isBanned: (node) => this.accused.includes(node),
    });
    this.replication = new Replication(around, {
      ...{ self: certified.node, book, periodMs: 1_000_000, concurrency: 4, keeps: true },
      alive: () => this.others().map(({ node }) => node),
      isAway: (node) => mesh.get(node)!.isAway,
      bring: (fragment, signal) => this.coded.keep(fragment, signal),
      audit: (node, of) => audit.holds(node, of),
      release: async ({ blobs }) => assets.exchange.release(blobs.map(({ digest }) => digest)),
      coded: {
        standIn: (id) => this.coded.standIn(id),
        shown: (of) => this.coded.shown(of),
        mayKeep: (of) => this.coded.mayKeep(of),
      },
    });
    this.answers = new Map([...audit.answers(), ...this.replication.answers()]);
    this.coded = new Coded(around, {
      ...{ self: this.node, networkId: network.networkId, book, content: assets.exchange, trust: certified.trust },
      ...{ audit, replication: this.replication, collection: this.collection, patienceMs },
      accepted: (id) => void this.collection.ids.add(id),
      inform: async (node) => {
        for (const id of book.codingIds('all')) await mesh.get(node)!.hear(book.coding(id)!.bytes);
      },
      sources: async () => this.others().map(sourceOf),
      downloader: (accuse) =>
        new Downloader(
          { store: assets.exchange, clock: systemClock, random: Math.random, downloads: new Shaper(null), accuse },
          { patienceMs: 3_000, refreshMs: 50, hedgeMs: 500 },
        ),
      accuse: (node) => void this.accused.push(node),
      warn: (message, error) => assert.fail(`${message}: ${String(error)}`),
    });
  }

  get isAway(): boolean {
    return this.#isAway;
  }

  /** Everybody notices. */
  async setAway(is: boolean): Promise<void> {
    this.#isAway = is;
    for (const { replication } of this.others()) {
      replication.changed();
      await replication.settle();
    }
  }

  others(): Home[] {
    return [...this.#mesh.values()].filter((home) => home !== this && !home.isAway);
  }

  async hear(bytes: Uint8Array): Promise<string> {
    const id = digestOf(bytes);
    if (this.collection.knows(id)) return 'known';
    const reception = await this.collection.receive(id, bytes);
    if (reception === 'accepted') this.collection.ids.add(id);
    return reception;
  }

  async hold({ bytes, blob }: MadeContent = content): Promise<void> {
    await this.assets.put(once(bytes), { expect: blob.digest });
    this.book.keepResource(resource, true);
  }

  async has(blob: Digest): Promise<boolean> {
    return (await this.assets.stat(blob)) !== null;
  }

  async kept(): Promise<number> {
    return (await this.assets.totals()).bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.coded[Symbol.asyncDispose]();
    this.replication[Symbol.dispose]();
    await this.book[Symbol.asyncDispose]();
    await this.assets[Symbol.asyncDispose]();
  }
}

function sourceOf(home: Home): Source {
  const { exchange } = home.assets;
  const served = (blob: Digest) => home.book.isShared(blob) || home.coded.offers(blob);
  const read = async (blob: Digest, offset: number, length: number) => {
    assert.ok(served(blob), 'what is given is shared or offered');
    const into = new Uint8Array(length);
    await exchange.readHeld(blob, offset, into);
    return home.lies ? into.map((byte) => byte ^ 1) : into;
  };
  return {
    node: home.node,
    rttMs: 1,
    have: async (blobs) =>
      Promise.all(blobs.map(async (blob) => (served(blob) ? exchange.holding(blob) : ({ kind: 'none' } as const)))),
    shardList: async (blob) => (await exchange.shardList(blob))!,
    read: async (ranges) =>
      concat(...(await Promise.all(ranges.map(({ blob, offset, length }) => read(blob, offset, length))))),
    fetchRange: async ({ blob, offset, length }, write) => write(await read(blob, offset, length)),
  };
}

/** So many nodes that know of the package; the first one has it. */
async function homes(t: TestContext, count: number, patienceMs = 1_000_000): Promise<Home[]> {
  const folder = await mkdtemp(join(tmpdir(), 'hypermesh-coded-'));
  const mesh = new Map<string, Home>();
  const stack = new AsyncDisposableStack();
  t.after(async () => {
    await stack.disposeAsync();
    await rm(folder, { recursive: true, force: true });
  });
  for (let at = 0; at < count; at++) {
    const certified = members[at]!;
    const directory = join(folder, String(at));
    const assets = await openAssets({ directory, clock: systemClock });
    const home = stack.use(new Home(mesh, certified, assets, new Book(directory), patienceMs));
    home.book.keepResource(resource, false);
    mesh.set(home.node, home);
  }
  const all = [...mesh.values()];
  await all[0]!.hold();
  return all;
}

function at(all: readonly Home[], node: string | null): Home {
  return all.find((home) => home.node === node)!;
}

test('code() leaves one fragment on each of k + m nodes and nothing else; restore() needs any k of them and no whole', async (t) => {
  const all = await homes(t, 7);
  const [coder] = all as [Home];
  const before = await coder.kept();
  const { holders, wanted, fragments } = await coder.coded.code(resource, { k: 3, m: 2 });
  assert.equal(wanted, 5);
  assert.equal(new Set(holders).size, 5);
  assert.ok(!holders.includes(coder.node), 'whoever has the whole comes last');
  assert.deepEqual(
    fragments!.map(({ index }) => index),
    [0, 1, 2, 3, 4],
  );
  assert.equal(await coder.kept(), before, 'what was made for others is gone');
  const kept = await Promise.all(all.slice(1).map((home) => home.kept()));
  const part = Math.ceil(SIZE / 3);
  assert.deepEqual(
    kept.sort((a, b) => a - b),
    [0, part, part, part, part, part],
  );
  assert.deepEqual(coder.coded.figures(), { packages: 1, fragments: 0, missing: 0 });
  assert.ok(coder.coded.standIn(resource.id));

  // Garbage collection leaves what is kept.
  for (const home of all.slice(1)) await home.assets.collect();
  const user = all.slice(1).find((home) => !holders.includes(home.node))!;
  await user.hear(coder.book.coding(coder.book.codingIds('all')[0]!)!.bytes);
  await coder.setAway(true);
  // Data and parity, two of each lost in turn.
  for (const lost of [
    [0, 1],
    [1, 3],
    [2, 4],
  ]) {
    for (const { index, node } of fragments!) await at(all, node).setAway(lost.includes(index));
    assert.ok(await user.coded.restore(content.blob));
    assert.equal((await user.assets.stat(content.blob.digest))!.shards.root, content.blob.shards.root);
    assert.equal(await user.kept(), SIZE, 'fragments that were fetched for this are gone');
    await user.assets.exchange.drop([content.blob.digest]);
  }
  for (const { index, node } of fragments!) await at(all, node).setAway(index < 3);
  assert.equal(await user.coded.restore(content.blob), false, 'two are too few');
  assert.equal(await user.kept(), 0);
  assert.deepEqual(user.accused, []);
});

test('code() twice places nothing anew, and reports who keeps what', async (t) => {
  const [coder, ...others] = (await homes(t, 4)) as [Home, ...Home[]];
  const first = await coder.coded.code(resource, { k: 2, m: 1 });
  const again = await coder.coded.code(resource, { k: 2, m: 1 });
  assert.deepEqual(again, first);
  assert.equal(coder.book.codingIds('all').length, 1);
  const kept = await Promise.all(others.map((home) => home.kept()));
  assert.equal(
    kept.reduce((sum, bytes) => sum + bytes),
    3 * Math.ceil(SIZE / 2),
  );
});

test('restore() survives a holder that sends other bytes, who is known for it once the coding is known to be true', async (t) => {
  const all = await homes(t, 5);
  const [coder] = all as [Home];
  const { fragments } = await coder.coded.code(resource, { k: 2, m: 2 });
  at(all, fragments![0]!.node).lies = true;
  const user = at(all, fragments![3]!.node);
  await coder.setAway(true);
  assert.ok(await user.coded.restore(content.blob));
  assert.deepEqual(user.accused, [], 'it might be the coding that lies');

  await coder.setAway(false);
  await coder.assets.exchange.drop([content.blob.digest]);
  assert.ok(await coder.coded.restore(content.blob));
  assert.deepEqual(coder.accused, [fragments![0]!.node]);
});

/** What a node says whose coding is false; the lie is in `change`. */
async function falseCoding(liar: Home, change: (coding: Coding) => Coding): Promise<Uint8Array> {
  const parts = [0, 1, 2].map((index) => cut(noise(Math.ceil(SIZE / 2), `false ${index}`)));
  for (const { bytes, blob } of parts) await liar.assets.put(once(bytes), { expect: blob.digest });
  const coding = change({
    ...{ formatVersion: 1, network: network.networkId, resource: resource.id, k: 2, m: 1, codedAtMs: Date.now() },
    blob: { digest: content.blob.digest, size: SIZE },
    fragments: parts.map(({ blob: { digest, shards } }) => ({ digest, count: shards.count, root: shards.root })),
  });
  const { trust } = liar.certified;
  const { chain } = await trust.identity('node');
  return encodeSigned({ envelope: await trust.sign('node', CODING_TYPE, encodeCoding(coding)), chain });
}

test('a false coding costs who tries it time, and who signed it its place; nobody who held what it named is accused', async (t) => {
  const [liar, holder, another, user] = (await homes(t, 4)) as [Home, Home, Home, Home];
  const bytes = await falseCoding(liar, (coding) => coding);
  const [id] = [digestOf(bytes)];
  for (const home of [holder, another, user]) assert.equal(await home.hear(bytes), 'accepted');
  const { coding } = user.book.coding(id)!;
  for (const [index, home] of [holder, another].entries()) {
    const blob = liar.assets;
    const part = noise(Math.ceil(SIZE / 2), `false ${index}`);
    await home.assets.put(once(part), { expect: coding.fragments[index]!.digest });
    const [fragment] = home.book.page('', 10).filter(({ replication, id: of }) => {
      return replication === 0 && home.book.get(of)!.blobs[0]!.digest === coding.fragments[index]!.digest;
    });
    home.book.holdFragment(home.book.get(fragment!.id)!);
    assert.ok(blob !== home.assets);
  }
  await liar.setAway(true);
  assert.equal(await user.coded.restore(content.blob), false);
  assert.deepEqual(user.accused, [liar.node]);
  assert.equal(user.book.coding(id), null);
  assert.equal(await user.hear(bytes), 'known', 'it is not taken again');
  assert.equal(await user.kept(), 0);
});

test('whoever has the whole finds out that a coding is false before it gives up anything, and stands by one that is true', async (t) => {
  const [coder, place, liar, ...others] = (await homes(t, 6, 400)) as [Home, Home, Home, ...Home[]];
  await place.hold();
  const bytes = await falseCoding(liar, (coding) => coding);
  assert.equal(await place.hear(bytes), 'accepted');
  assert.ok(!place.coded.standIn(resource.id));
  await until('the lie is seen', () => place.accused.includes(liar.node));
  assert.equal(place.book.coding(digestOf(bytes)), null);
  assert.ok(!place.coded.standIn(resource.id));

  await liar.setAway(true);
  await coder.coded.code(resource, { k: 2, m: 2 });
  await place.hear(coder.book.coding(coder.book.codingIds('all')[0]!)!.bytes);
  await until('it is seen to be true', () => place.coded.standIn(resource.id));
  assert.ok(await place.coded.shown(place.book.get(resource.id)!));
  // Somebody who says that he keeps a fragment and does not: then the whole stays.
  const [cheat] = others as [Home];
  const held = cheat.book.page('', 10).find(({ replication, held: is }) => replication === 0 && is)!;
  await cheat.assets.exchange.drop([cheat.book.get(held.id)!.blobs[0]!.digest]);
  assert.ok(!(await place.coded.shown(place.book.get(resource.id)!)));
  assert.deepEqual(place.accused, [liar.node]);
});

test('a fragment that is missed for long is made again on a node that has none, also by who has no whole', async (t) => {
  const all = await homes(t, 7, 5_000);
  const [coder] = all as [Home];
  const { fragments } = await coder.coded.code(resource, { k: 3, m: 2 });
  const { bytes } = coder.book.coding(coder.book.codingIds('all')[0]!)!;
  for (const home of all.slice(1)) await home.hear(bytes);
  await coder.setAway(true);
  await at(all, fragments![1]!.node).setAway(true);
  const spare = all.slice(1).find((home) => fragments!.every(({ node }) => node !== home.node))!;
  await until('the spare node keeps it', () => spare.coded.figures().fragments === 1);
  assert.ok(await spare.has(fragmentDigest(coder, 1)));
  const rest = all.filter((home) => !home.isAway);
  await until('nobody misses any', () => rest.every((home) => home.coded.figures().missing === 0));
  assert.deepEqual(
    rest.map((home) => home.coded.figures().fragments),
    rest.map(() => 1),
  );
});

function fragmentDigest(home: Home, index: number): Digest {
  return home.book.codingsOf(content.blob.digest)[0]!.coding.fragments[index]!.digest;
}

test('a node keeps no second fragment of a blob, nothing that is here for another reason, and nothing of what is gone', async (t) => {
  const [coder, keeper, other] = (await homes(t, 4)) as [Home, Home, Home];
  await coder.coded.code(resource, { k: 2, m: 1 });
  await keeper.hear(coder.book.coding(coder.book.codingIds('all')[0]!)!.bytes);
  const fragments = keeper.book
    .page('', 10)
    .filter(({ replication }) => replication === 0)
    .map(({ id }) => keeper.book.get(id)!);
  assert.equal(fragments.length, 3);
  const own = fragments.find(({ held }) => held)!;
  const second = fragments.find(({ held }) => !held)!;
  assert.ok(keeper.coded.mayKeep(own));
  assert.ok(!keeper.coded.mayKeep(second));
  await assert.rejects(other.coded.keep({ ...second, id: digestOf('nothing that was coded') }), {
    code: 'content-unavailable',
  });

  await keeper.coded.forget(keeper.book.codingIds({ resource: resource.id }));
  assert.equal(await keeper.kept(), 0);
  assert.deepEqual(keeper.coded.figures(), { packages: 0, fragments: 0, missing: 0 });

  const secret = second.blobs[0]!;
  const stranger = (await homes(t, 2))[1]!;
  await stranger.hear(coder.book.coding(coder.book.codingIds('all')[0]!)!.bytes);
  await stranger.assets.put(once(await bytesOf(coder, secret.digest)), { expect: secret.digest });
  await assert.rejects(stranger.coded.keep(second), { code: 'not-permitted' });
  assert.ok(!stranger.book.isShared(secret.digest));
});

async function bytesOf(home: Home, blob: Digest): Promise<Uint8Array> {
  const holder = [home, ...home.others()];
  for (const one of holder) {
    if (!(await one.has(blob))) continue;
    const bytes = new Uint8Array((await one.assets.stat(blob))!.size);
    await one.assets.exchange.readHeld(blob, 0, bytes);
    return bytes;
  }
  throw new Error('nobody has it');
}

test('code() refuses what is small, what is alike, what is not here, and a network that is too small', async (t) => {
  const [coder, other] = (await homes(t, 3)) as [Home, Home];
  await assert.rejects(coder.coded.code(resource, { k: 3, m: 1 }), { code: 'network-unreachable' });
  await assert.rejects(coder.coded.code(resource, { k: 1, m: 1 }), { code: 'usage' });
  await assert.rejects(other.coded.code(resource, { k: 2, m: 1 }), { code: 'content-unavailable' });
  const small = cut(noise(1_000, 'small'));
  await assert.rejects(coder.coded.code({ ...resource, blobs: [small.blob] }, { k: 2, m: 1 }), { code: 'usage' });
  const alike = cut(new Uint8Array(2 ** 21));
  await coder.assets.put(once(alike.bytes));
  await assert.rejects(coder.coded.code({ ...resource, blobs: [alike.blob] }, { k: 2, m: 1 }), { code: 'usage' });
  assert.equal(await coder.kept(), SIZE + alike.bytes.length, 'nothing is left of what was tried');
});

test('CodingCollection takes what a member signed about content that is known, in bounds, and blames nobody for what runs out', async (t) => {
  const [liar, user] = (await homes(t, 2)) as [Home, Home];
  const said = (change: (coding: Coding) => Coding) => falseCoding(liar, change);
  assert.equal(await user.hear(await said((coding) => ({ ...coding, network: resource.id }))), 'refused');
  assert.equal(await user.hear(await said((coding) => ({ ...coding, m: 2 }))), 'refused');
  const early = await said((coding) => ({ ...coding, resource: digestOf('not heard of') }));
  assert.equal(await user.hear(early), 'aside');
  assert.equal(await user.hear(early), 'known');
  assert.equal(
    await user.hear(await said((coding) => ({ ...coding, blob: { ...coding.blob, size: SIZE + 1 } }))),
    'aside',
  );
  const good = await said((coding) => coding);
  assert.equal(await user.hear(good), 'accepted');
  const broken = good.slice();
  broken[broken.length - 40]! ^= 1;
  assert.equal(await user.hear(broken), 'refused');
  // Nothing of it names other content, by whatever name.
  assert.deepEqual(user.book.resourceTotals(), { known: 1, held: 0 });
});
