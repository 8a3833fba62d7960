import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { utf8 } from '../../src/base/bytes.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { type ErrorCode, isCoded } from '../../src/base/errors.ts';
import type { CatalogExtension } from '../../src/catalog/extension.ts';
import { HyperMesh } from '../../src/index.ts';
import type { AccessAsk } from '../../src/subsystems/nkrypt/access.ts';
import type { NKrypt } from '../../src/subsystems/nkrypt/index.ts';
import { rootOf } from '../../src/subsystems/nkrypt/merkle.ts';
import { auditPositions } from '../../src/subsystems/nkrypt/registration.ts';
import type { Ask } from '../../src/subsystems/stoq/ask.ts';
import { until } from '../../src/testing/until.ts';
import { ACCESS_LIMITS, accessProve, decodeAccess, encodeAccess } from '../../src/wire/access.ts';
import { encodeHaveAsk, SHARD_LIST_BYTES_MAX } from '../../src/wire/content.ts';
import {
  auditAnswer,
  auditContext,
  decodeSpaceAudit,
  encodeSpaceAudit,
  SPACE_AUDIT_LIMITS,
} from '../../src/wire/space-audit.ts';
import { type Folder, SMALL_NETWORK, temporaryFolder, writePackage } from '../system/support.ts';
import { QUICK_PACE } from './mesh.ts';

const { requirements } = SMALL_NETWORK;
const DEADLINE_MS = 30_000;
const WINDOW_MS = 60_000;
const NETWORK = {
  ...SMALL_NETWORK,
  requirements: {
    ...requirements,
    install: {
      ...requirements.install,
      space: { ...requirements.install.space, deadlineMs: DEADLINE_MS },
      time: { ...requirements.install.time, windowMs: WINDOW_MS },
    },
  },
};

/** Nodes with the real channel between them: a founder, a member that gives, and two that only take, so that they are no place of anything. */

interface Node {
  readonly name: string;
  readonly hypermesh: HyperMesh;
  readonly catalog: CatalogExtension;
  readonly id: string;
  aheadMs: number;
}

let stack: AsyncDisposableStack;
let folder: Folder;
let founder: Node;
let giver: Node;
let taker: Node;
let other: Node;
const packages: { readonly digest: Digest; readonly layer: Digest }[] = [];

async function open(name: string, stays: boolean): Promise<Node> {
  const at = { aheadMs: 0 };
  const hypermesh = stack.use(
    await HyperMesh.create({
      home: join(folder.path, name),
      network: NETWORK,
      threads: 1,
      clock: { nowMs: () => Date.now() + at.aheadMs },
      peers: { pace: QUICK_PACE, stays },
    }),
  );
  const { node: id } = await hypermesh.node.membership.place();
  return Object.assign(at, { name, id, hypermesh, catalog: await hypermesh.loadExtension('catalog') });
}

before(async () => {
  stack = new AsyncDisposableStack();
  folder = stack.use(await temporaryFolder());
  founder = await open('founder', true);
  giver = await open('giver', true);
  taker = await open('taker', false);
  other = await open('other', false);
  const { membership } = founder.hypermesh.node;
  await membership.create({ listen: '127.0.0.1:0' });
  for (const { hypermesh } of [giver, taker, other]) {
    const { invite } = await membership.invite();
    await hypermesh.node.membership.join(invite, { listen: '127.0.0.1:0' });
  }
  for (const name of ['one', 'two', 'three']) {
    const manifest = { name: `giver/${name}`, version: '1.0.0', type: 'library' };
    const source = await writePackage(join(folder.path, `package-${name}`), manifest, { 'x.txt': name.repeat(100) });
    const staged = await giver.hypermesh.stageFolder(source);
    const { digest, layers } = await giver.catalog
      .publishPackage(await giver.catalog.signPackage(staged))
      .then(async (published) => giver.catalog.resolve(`giver/${name}@${published.version}`));
    packages.push({ digest, layer: layers[0]! });
  }
  for (const { catalog, hypermesh, name } of [taker, other]) {
    await until(`${name} knows the packages`, async () => {
      await hypermesh.node.transport.sync();
      return (await Promise.all(['one', 'two', 'three'].map((what) => catalog.resolve(`giver/${what}`)))).length === 3;
    });
  }
});

after(async () => {
  await stack.disposeAsync();
});

/** The parts behind what a node shows to programs. */
const transportOf = ({ hypermesh }: Node) => hypermesh.node.transport as unknown as { readonly ask: Ask };
const consensusOf = ({ hypermesh }: Node) => hypermesh.node.consensus as NKrypt;

/** What a node asks of the one that gives, as it travels. */
function asking(node: Node): AccessAsk {
  return (method, body, options) => transportOf(node).ask(giver.id, method, body, options);
}

function gain(node: Node, which: readonly number[], ask = asking(node)) {
  const wanted = which.map((at) => packages[at]!.digest);
  return consensusOf(node).gainAccess(giver.id, 'install', wanted, ask);
}

function shardsOf(node: Node, which: number): Promise<Uint8Array> {
  const body = encodeHaveAsk([packages[which]!.layer]);
  return transportOf(node).ask(giver.id, 'content/shards', body, { replyBytesMax: SHARD_LIST_BYTES_MAX });
}

const refused = (promise: Promise<unknown>, code: ErrorCode) =>
  assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, code), String(error));
    return true;
  });

/** Makes a proof and keeps it from arriving. */
async function proofOf(node: Node, which: readonly number[]): Promise<Uint8Array> {
  let kept: Uint8Array | undefined;
  const ask = asking(node);
  await gain(node, which, async (method, body, options) => {
    if (method !== 'access/prove') return ask(method, body, options);
    kept = body;
    return encodeAccess({ forMs: 0 });
  });
  return kept!;
}

const present = (node: Node, proof: Uint8Array) =>
  asking(node)('access/prove', proof, { replyBytesMax: ACCESS_LIMITS.answerBytesMax });

/** The same with one part changed. */
function altered(proof: Uint8Array, change: (value: ReturnType<typeof read>) => unknown): Uint8Array {
  return encodeAccess(change(read(proof)));
}
const read = (proof: Uint8Array) => decodeAccess(accessProve, proof, ACCESS_LIMITS.proveBytesMax);

describe('content at the node that gives it', () => {
  it('is refused without a proof, and whether it is there is told', async () => {
    await refused(shardsOf(taker, 0), 'access-needed');
    const have = await transportOf(taker).ask(giver.id, 'content/have', encodeHaveAsk([packages[0]!.layer]), {
      replyBytesMax: 64,
    });
    assert.equal(have.at(-1), 1);
  });

  it('is refused to whoever presents the proof of another publisher', async () => {
    const proof = await proofOf(taker, [0]);
    await refused(present(other, proof), 'not-permitted');
    await refused(shardsOf(other, 0), 'access-needed');
    // The one it was made for may still use it.
    await present(taker, proof);
    await shardsOf(taker, 0);
    giver.aheadMs += WINDOW_MS + 1_000;
  });

  it('is refused for another package than those that the proof names', async () => {
    await present(taker, await proofOf(taker, [0]));
    await shardsOf(taker, 0);
    await refused(shardsOf(taker, 1), 'access-needed');
    const widened = altered(await proofOf(taker, [1]), ({ proof, standing }) => ({
      proof: { ...proof, challenge: { ...proof.challenge, packages: packages.map(({ digest }) => digest).sort() } },
      standing,
    }));
    await refused(present(taker, widened), 'proof-rejected');
    giver.aheadMs += WINDOW_MS + 1_000;
  });

  it('is refused when the proof is presented a second time, too late, at another node, or with a part that is wrong', async () => {
    const proof = await proofOf(taker, [0]);
    await present(taker, proof);
    await refused(present(taker, proof), 'proof-replayed');
    giver.aheadMs += WINDOW_MS + 1_000;
    await refused(shardsOf(taker, 0), 'access-needed');
    await refused(present(taker, proof), 'proof-replayed');

    const late = await proofOf(taker, [0]);
    giver.aheadMs += WINDOW_MS + 1_000;
    await refused(present(taker, late), 'proof-expired');

    const elsewhere = transportOf(taker).ask(founder.id, 'access/prove', await proofOf(taker, [0]), {
      replyBytesMax: 64,
    });
    await refused(elsewhere, 'not-permitted');

    const parts: ((value: ReturnType<typeof read>) => unknown)[] = [
      ({ proof: { time, ...rest }, standing }) => ({ proof: { ...rest, time: { ...time, counter: 7 } }, standing }),
      ({ proof, standing }) => ({ proof: { ...proof, time: null }, standing }),
      ({ proof: { space, ...rest }, standing }) => ({
        proof: { ...rest, space: { ...space, labels: Buffer.alloc(32).toString('base64') } },
        standing,
      }),
      ({ proof, standing }) => ({ proof: { ...proof, space: null }, standing }),
    ];
    for (const [at, change] of parts.entries()) {
      await refused(present(taker, altered(await proofOf(taker, [1]), change)), 'proof-rejected').catch((error) => {
        throw new Error(`part ${at}`, { cause: error });
      });
    }
    await refused(shardsOf(taker, 1), 'access-needed');
  });

  it('is refused when the committee does not stand for the space commitment', async () => {
    const parts: ((value: ReturnType<typeof read>) => unknown)[] = [
      ({ proof }) => ({ proof, standing: [] }),
      ({ proof, standing }) => ({ proof, standing: standing.map((word) => ({ ...word, atMs: word.atMs + 1 })) }),
    ];
    const { standing } = read(await proofOf(taker, [2]));
    parts.push(({ proof }) => ({ proof, standing }));
    for (const change of parts) {
      await refused(present(other, altered(await proofOf(other, [2]), change)), 'proof-rejected');
    }
  });

  it('is refused when the labels were read after the deadline, or other labels than are shown', async () => {
    const ask = asking(taker);
    const late: AccessAsk = (method, body, options) => {
      if (method === 'access/opened') giver.aheadMs += DEADLINE_MS + 1;
      return ask(method, body, options);
    };
    await refused(gain(taker, [0], late), 'proof-expired');
    const others: AccessAsk = (method, body, options) => {
      if (method !== 'access/opened') return ask(method, body, options);
      const told = JSON.parse(Buffer.from(body).toString()) as object;
      return ask(method, encodeAccess({ ...told, opening: digestOf(utf8('other')) }), options);
    };
    await refused(gain(taker, [0], others), 'proof-rejected');
    await refused(shardsOf(taker, 0), 'access-needed');
  });

  it('is given to whoever proves it: one proof of an install for each node that gives, and none while it lasts', async () => {
    const { consensus } = giver.hypermesh.node;
    const publisher = (await taker.hypermesh.node.trust.identity('publisher')).keyId;
    giver.aheadMs += 2 * WINDOW_MS;
    for (const { digest } of packages) assert.equal(await consensus.canAccessPackage(publisher, digest), false);
    const { installed } = await taker.catalog.install(['giver/one', 'giver/two'], { root: join(folder.path, 'here') });
    assert.equal(installed.length, 2);
    // Whoever gave one of them was shown a proof for both, and for nothing else.
    const seen = await Promise.all(
      [giver, founder].map(({ hypermesh }) =>
        Promise.all(packages.map(({ digest }) => hypermesh.node.consensus.canAccessPackage(publisher, digest))),
      ),
    );
    assert.ok(seen.some(([one]) => one));
    for (const [one, two, three] of seen) assert.deepEqual([two, three], [one, false]);
    await gain(taker, [0, 1]);
    const asked: string[] = [];
    const ask = asking(taker);
    await gain(taker, [0, 1], (method, ...rest) => {
      asked.push(method);
      return ask(method, ...rest);
    });
    assert.deepEqual(asked, ['access/ask']);
    giver.aheadMs += WINDOW_MS + 1_000;
    assert.equal(await consensus.canAccessPackage(publisher, packages[0]!.digest), false);
  });

  it('is given without a proof to a node that is asked to keep it', async () => {
    await until('the founder holds all', async () => {
      const { held } = (await founder.hypermesh.node.transport.status()).resources;
      return held === packages.length;
    });
    const publisher = (await founder.hypermesh.node.trust.identity('publisher')).keyId;
    for (const { digest } of packages)
      assert.equal(await giver.hypermesh.node.consensus.canAccessPackage(publisher, digest), false);
  });
});

describe('a space commitment', () => {
  const ask = (from: Node, method: string, body: unknown) =>
    transportOf(from).ask(giver.id, method, encodeSpaceAudit(body), {
      replyBytesMax: SPACE_AUDIT_LIMITS.answerBytesMax,
    });

  it('is opened for a validator that asks, and for nobody else', async () => {
    const nonce = 'ab'.repeat(32);
    await refused(ask(taker, 'space/audit', { nonce }), 'not-permitted');
    const { root, labels, path } = decodeSpaceAudit(auditAnswer, await ask(founder, 'space/audit', { nonce }));
    const { networkId } = await founder.hypermesh.node.membership.place();
    const identity = (await giver.hypermesh.node.trust.identity('publisher')).keyId;
    const n = SMALL_NETWORK.space.bytes / 32;
    const positions = auditPositions(nonce, auditContext(networkId, identity, nonce), root, n, 16);
    const opening = { labels: Buffer.from(labels, 'base64'), path: Buffer.from(path, 'base64') };
    assert.equal(Buffer.from(rootOf(n, positions, opening)!).toString('hex'), root);
    const { auditedAtMs } = await giver.hypermesh.node.consensus.space();
    assert.ok(auditedAtMs !== null && Math.abs(auditedAtMs - giver.aheadMs - Date.now()) < 60_000);
  });

  it('is not said to be lost by who has no seat, or to who has none', async () => {
    const about = { account: 'ab'.repeat(32), root: 'cd'.repeat(32) };
    await refused(ask(taker, 'space/lost', about), 'not-permitted');
    await refused(ask(founder, 'space/lost', about), 'committee-only');
  });
});
