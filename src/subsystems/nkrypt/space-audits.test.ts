import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { base64, fromHex, hex } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { auditAsk, auditContext, decodeSpaceAudit, encodeSpaceAudit } from '../../wire/space-audit.ts';
import { auditPositions } from './registration.ts';
import { SpaceCommitment } from './space.ts';
import { FAILURES_LOST, SpaceAudits } from './space-audits.ts';
import { LABEL_BYTES, labelSeed } from './space-graph.ts';

const HOUR_MS = 3_600_000;
const NETWORK: Digest = digestOf(new Uint8Array(1));
const TERMS = { networkId: NETWORK, bytes: 65_536, openings: 16, deadlineMs: 2_000 };
const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-audits-'));
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  rmSync(folder, { recursive: true, force: true });
});

/** Members whose commitments are real; what they do with a question is the test's. */
const IDENTITIES = ['11', '22', '33'].map((pair) => pair.repeat(32)) as [string, string, string];
const commitments = new Map<string, { readonly space: SpaceCommitment; readonly root: string }>();

before(async () => {
  for (const identity of IDENTITIES) {
    let root: string | undefined;
    const registry = {
      registered: () => root,
      register: async (roots: readonly string[]) => {
        root = roots.at(-1);
      },
    };
    const space = closing.use(
      new SpaceCommitment(
        { registry },
        {
          ...{
            directory: path.join(folder, identity.slice(0, 2)),
            seed: labelSeed(NETWORK, identity),
            bytes: TERMS.bytes,
          },
          ...{ iterations: 2, registrationOpenings: 16, clock: { nowMs: () => 0 } },
        },
      ),
    );
    commitments.set(identity, { space, root: await space.ready() });
  }
});

type Behaviour = 'honest' | 'late' | 'silent' | 'away' | 'gone' | 'forgotten' | 'other labels' | 'other root';

async function validator(name: string, random = () => Math.random()) {
  const directory = path.join(folder, name);
  mkdirSync(directory);
  const time = { nowMs: 0, elapsedMs: 0 };
  const behaviour = new Map<string, Behaviour>();
  const asked: { readonly identity: string; readonly atMs: number }[] = [];
  const lost: string[] = [];
  const registered = new Set(IDENTITIES);
  const answer = async (identity: string, body: Uint8Array): Promise<Uint8Array> => {
    asked.push({ identity, atMs: time.nowMs });
    const { space, root } = commitments.get(identity)!;
    const { nonce } = decodeSpaceAudit(auditAsk, body);
    const positions = (of: string) =>
      auditPositions(of, auditContext(NETWORK, identity, of), root, TERMS.bytes / LABEL_BYTES, TERMS.openings);
    const opened = async (of: string) => {
      const { labels, path } = await space.open(positions(of));
      return { root, labels: base64(labels), path: base64(path) };
    };
    time.elapsedMs += 100;
    switch (behaviour.get(identity) ?? 'honest') {
      case 'honest':
        return encodeSpaceAudit(await opened(nonce));
      case 'late':
        time.elapsedMs += TERMS.deadlineMs;
        return encodeSpaceAudit(await opened(nonce));
      case 'silent':
        throw new HyperMeshError('timeout', 'no answer');
      case 'gone':
        throw new HyperMeshError('peer-unreachable', 'the connection ended');
      case 'forgotten':
        throw new HyperMeshError('space-unavailable', 'absent');
      case 'other labels':
        return encodeSpaceAudit(await opened(hex(fromHex(nonce).reverse())));
      default:
        return encodeSpaceAudit({ ...(await opened(nonce)), root: '0'.repeat(64) });
    }
  };
  const audits = closing.use(
    new SpaceAudits(
      {
        registered: () => [...registered].map((identity) => ({ identity, root: commitments.get(identity)!.root })),
        ask: async (node, method, body) => {
          if (behaviour.get(node) === 'away') throw new HyperMeshError('peer-unreachable', 'nobody there');
          return method === 'overlay/ping' ? new Uint8Array() : answer(node, body);
        },
        lost: async (identity) => void lost.push(identity),
      },
      {
        ...{ directory, terms: TERMS, random },
        clock: { nowMs: () => time.nowMs },
        elapsedMs: () => time.elapsedMs,
      },
    ),
  );
  for (const identity of IDENTITIES) audits.seen(identity, identity);
  return {
    ...{ audits, time, behaviour, asked, lost, registered },
    async passes(ms: number, stepMs = 10_000) {
      for (const until = time.nowMs + ms; time.nowMs < until; time.nowMs += stepMs) await audits.round();
    },
  };
}

test('members that keep what they registered pass, at times that do not repeat', async () => {
  const it = await validator('honest');
  await it.passes(100 * HOUR_MS, 600_000);
  assert.deepEqual(it.lost, []);
  for (const identity of IDENTITIES) {
    const times = it.asked.filter((one) => one.identity === identity).map(({ atMs }) => atMs);
    // Some ninety on average; six standard deviations.
    assert.ok(times.length > 35 && times.length < 150, `${times.length}`);
    const pauses = times.slice(1).map((atMs, i) => atMs - times[i]!);
    assert.ok(new Set(pauses).size > 5);
    assert.deepEqual(it.audits.record(identity), { passedAtMs: times.at(-1)!, failures: 0 });
  }
});

for (const how of ['late', 'silent', 'forgotten', 'other labels', 'other root'] as const) {
  test(`a member whose answer is ${how} loses its commitment after ${FAILURES_LOST} failures in a row, and no other one does`, async () => {
    const it = await validator(`lost-${how.replace(' ', '-')}`);
    const [one] = IDENTITIES;
    const { root } = commitments.get(one)!;
    it.behaviour.set(one, how);
    let looks = 0;
    while (it.lost.length === 0) {
      assert.equal(it.audits.isLost(one, root), false);
      await it.passes(30_000, 30_000);
      assert.ok(looks++ < 24 * 120, 'within a day');
    }
    assert.equal(it.asked.filter(({ identity }) => identity === one).length, FAILURES_LOST);
    assert.equal(it.audits.isLost(one, root), true);
    assert.equal(it.audits.isLost(one, '0'.repeat(64)), false);
    assert.deepEqual(it.lost, [one]);
    // Its registration is dropped: nothing is remembered against the next one.
    it.registered.delete(one);
    await it.passes(60_000);
    assert.equal(it.audits.record(one), undefined);
  });
}

test('whoever is away, or whose connection ends, is not blamed for it, however long', async () => {
  const it = await validator('away');
  const [one, two] = IDENTITIES;
  it.behaviour.set(one, 'away');
  it.behaviour.set(two, 'gone');
  await it.passes(12 * HOUR_MS, 600_000);
  assert.deepEqual(it.lost, []);
  for (const identity of [one, two]) assert.deepEqual(it.audits.record(identity), { passedAtMs: null, failures: 0 });
  it.behaviour.clear();
  await it.passes(7 * HOUR_MS, 600_000);
  assert.notEqual(it.audits.record(one)?.passedAtMs, null);
});

test('failures that are not in a row are forgotten, and counts survive a restart', async () => {
  const it = await validator('restart', () => 0.5);
  const [one] = IDENTITIES;
  const failures = () => it.audits.record(one)?.failures ?? 0;
  const until = async (holds: () => boolean) => {
    while (!holds()) await it.passes(60_000, 60_000);
  };
  for (let time = 0; time < 3; time++) {
    it.behaviour.set(one, 'late');
    await until(() => failures() === FAILURES_LOST - 1);
    it.behaviour.set(one, 'honest');
    await until(() => failures() === 0);
  }
  assert.deepEqual(it.lost, []);
  it.behaviour.set(one, 'late');
  await until(() => failures() === 1);
  const before = it.audits.record(one);
  await using again = new SpaceAudits(
    { registered: () => [], ask: async () => new Uint8Array(), lost: async () => undefined },
    { directory: path.join(folder, 'restart'), terms: TERMS, clock: { nowMs: () => 0 } },
  );
  assert.deepEqual(again.record(one), before);
});

test('no more audits are begun in one round than may be, and none is left out', async () => {
  const many = Array.from({ length: 100 }, (_, i) => i.toString(16).padStart(64, '0'));
  const time = { nowMs: 0 };
  const asked = new Set<string>();
  let atOnce = 0;
  let mostAtOnce = 0;
  const directory = path.join(folder, 'many');
  mkdirSync(directory);
  await using audits = new SpaceAudits(
    {
      registered: () => many.map((identity) => ({ identity, root: '0'.repeat(64) })),
      ask: async (node, method) => {
        if (method === 'overlay/ping') return new Uint8Array();
        asked.add(node);
        mostAtOnce = Math.max(mostAtOnce, ++atOnce);
        await new Promise(setImmediate);
        atOnce -= 1;
        throw new HyperMeshError('timeout', 'no answer');
      },
      lost: async () => undefined,
    },
    { directory, terms: TERMS, clock: { nowMs: () => time.nowMs }, random: () => 0 },
  );
  for (const identity of many) audits.seen(identity, identity);
  await audits.round();
  assert.equal(asked.size, 30);
  assert.ok(mostAtOnce <= 4);
});
