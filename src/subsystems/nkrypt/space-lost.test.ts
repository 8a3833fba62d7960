import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { requirementsOf } from '../../testing/requirements.ts';
import { signatureCheck } from '../../testing/signer.ts';
import { auditAsk, decodeSpaceAudit, encodeSpaceAudit } from '../../wire/space-audit.ts';
import { openTrust } from '../trustchain/index.ts';
import { type NKrypt, openConsensus } from './index.ts';

/** A validator and a member in one process, with the order and the ledger of a real network; only the channel between them is left out. */

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-lost-'));
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  rmSync(folder, { recursive: true, force: true });
});

const requirements = requirementsOf((kind) => ({
  kind,
  space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 16 },
  ...{ stake: { amountMin: 100 }, work: { hexDigits: 1 }, time: { squarings: 1_024, windowMs: 60_000 } },
}));

const time = { nowMs: Date.now() };
const clock = { nowMs: () => time.nowMs };

async function home(name: string): Promise<{ readonly nkrypt: NKrypt; readonly publisher: string }> {
  const keys = path.join(folder, `${name}-trust`);
  mkdirSync(keys, { mode: 0o700 });
  const trust = closing.use(await openTrust({ directory: keys, clock }));
  const nkrypt = closing.use(
    await openConsensus(
      { trust, check: signatureCheck },
      {
        ...{ directory: path.join(folder, name), clock, threads: 1, auditRoundMs: 5 },
        ...{ requirements, space: { bytes: 65_536, iterations: 2 }, stakeInitial: 10_000 },
      },
    ),
  );
  return { nkrypt, publisher: (await trust.identity('publisher')).keyId };
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let looks = 0; !(await holds()); looks++) {
    if (looks > 3_000) throw new Error(`${what}: not in time`);
    // An audit is due every hour or so, or two minutes after a failure.
    time.nowMs += 60_000;
    await sleep(5);
  }
}

test('a member that does not keep what it registered is found by audits, loses stake and registration, and may begin anew', async () => {
  const [founder, member] = [await home('founder'), await home('member')];
  await member.nkrypt.adopt((await founder.nkrypt.genesis()).document);
  member.nkrypt.follow((_validator, method, body) => founder.nkrypt.desk(method as never, member.publisher, body));
  await founder.nkrypt.grant('ab'.repeat(32), member.publisher, 1_000);
  await member.nkrypt.commitSpace();
  founder.nkrypt.seen(member.publisher, 'the node of the member');
  let audits = 0;
  let keeps = true;
  founder.nkrypt.watchSpace({
    seats: () => [],
    ask: async (_node, method, body) => {
      if (method === 'overlay/ping') return new Uint8Array();
      audits += 1;
      if (!keeps) throw new HyperMeshError('space-unavailable', 'nothing is kept here');
      return encodeSpaceAudit(
        await member.nkrypt.openForAudit(founder.publisher, decodeSpaceAudit(auditAsk, body).nonce),
      );
    },
  });
  await until('it passes some audits', async () => audits > 3);
  assert.notEqual((await member.nkrypt.space()).auditedAtMs, null);
  assert.deepEqual((await member.nkrypt.stake()).locked, 1_000);
  const subject = `sha256:${'cd'.repeat(32)}` as const;
  await member.nkrypt.challenge('default', subject, 'x');

  // An accident is noticed by the audit that meets it, and mended.
  await rm(path.join(folder, 'member', 'space'), { recursive: true });
  const sound = audits;
  await until('the accident is met', async () => audits > sound);
  // Without any time: making 64 KiB takes longer here than the hours until the next audits.
  do await sleep(50);
  while ((await member.nkrypt.space()).state !== 'ready');
  await until('it passes again', async () => audits > sound + 4);
  assert.equal((await member.nkrypt.stake()).locked, 1_000);

  keeps = false;
  const before = audits;
  await until('its stake is slashed', async () => (await member.nkrypt.stake()).locked < 1_000);
  assert.ok(audits - before >= 3);
  assert.equal((await member.nkrypt.stake()).locked, 950);

  // It keeps one again, and is registered again.
  keeps = true;
  await until('it is registered again', async () => {
    try {
      await member.nkrypt.commitSpace();
      await member.nkrypt.prove(await member.nkrypt.challenge('default', subject, 'x'));
      return true;
    } catch (error) {
      if (!isCoded(error, 'space-unavailable', 'proof-expired', 'anchor-lost')) throw error;
      return false;
    }
  });
  assert.equal((await member.nkrypt.stake()).locked, 950);
});
