import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { temporaryFolder } from './support.ts';

/** Each kill comes at a moment that the seed decides. */
const KILLS = Number(process.env['HYPERMESH_TEST_KILLS'] ?? 25);
const SEED = Number(process.env['HYPERMESH_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));

/** A small generator (mulberry32), so that a failure can be repeated from the printed seed. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Life {
  /** What it printed before it was killed. */
  readonly lines: readonly string[];
  /** It ended by itself, which it never should. */
  readonly ended: boolean;
  readonly errors: string;
}

/** How long a part of a life takes here and now, so that kills come at every moment of it and not long after it. */
class Pace {
  #ms: number;

  constructor(guessMs: number) {
    this.#ms = guessMs;
  }

  /** Somewhat beyond the end, too. `share`: 0 to 1. */
  moment(share: number): number {
    return share * 1.3 * this.#ms;
  }

  /** Null: it had not come to its end after `waitedMs`. */
  saw(tookMs: number | null, waitedMs: number): void {
    if (tookMs !== null) this.#ms = tookMs;
    else if (waitedMs > this.#ms) this.#ms = waitedMs * 1.3;
  }
}

const opening = new Pace(1_000);
const publishAndInstall = new Pace(1_500);

/** One life of the process: killed while it opens, or after it has looked at what the last one left; or as soon as it has published and installed, which shows how long that takes. */
async function live(
  folder: string,
  [first, verified]: readonly [number, number],
  from: 'start' | 'checked' | 'install',
  share: number,
): Promise<Life> {
  const args = [join(import.meta.dirname, 'crash-child.ts'), folder, String(first), String(verified)];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const startedAt = performance.now();
  const lines: string[] = [];
  /** When the first line of its kind came. */
  const at = new Map<string, number>();
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  const closed = new Promise<void>((done) => child.once('close', () => done()));
  const come = new Promise<void>((done) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line);
      const [kind] = line.split(' ') as [string];
      if (!at.has(kind)) at.set(kind, performance.now());
      if (kind === from) done();
    });
  });
  if (from !== 'start') await Promise.race([come, closed]);
  const pace = from === 'start' ? opening : publishAndInstall;
  const waitMs = from === 'install' ? 0 : pace.moment(share);
  await Promise.race([sleep(waitMs), closed]);
  const ended = child.exitCode !== null;
  child.kill('SIGKILL');
  await closed;
  const [begun, end] = from === 'start' ? [startedAt, at.get('ready')] : [at.get('checked'), at.get('install')];
  pace.saw(begun === undefined || end === undefined ? null : end - begun, waitMs);
  return { lines, ended, errors };
}

test(`killing the process at ${KILLS} random moments leaves the state before or after, never between`, {
  timeout: 1_200_000,
}, async (t) => {
  t.diagnostic(`seed ${SEED}`);
  await using folder = await temporaryFolder();
  const random = generator(SEED);
  let published = new Set<string>();
  let installed: string | null = null as string | null;
  let next = 1;
  /** All before this one were verified after the crash that could have harmed them; the last life looks at all of them once more. */
  let verified = 1;
  for (let kill = 0; kill < KILLS; kill++) {
    // Some kills come while the node is still opening, or looking.
    const isLast = kill === KILLS - 1;
    const from = kill === 0 ? 'install' : random() < 0.15 && !isLast ? 'start' : 'checked';
    const { lines, ended, errors } = await live(folder.path, [next, isLast ? 1 : verified], from, random());
    const context = `kill ${kill}, seed ${SEED}\n${lines.join('\n')}\n${errors}`;
    assert.equal(ended, false, context);
    assert.deepEqual(
      lines.filter((line) => line.startsWith('damaged')),
      [],
      context,
    );
    if (!lines.includes('checked')) continue;

    verified = next;
    const seen = new Set(lines.filter((line) => line.startsWith('published ')).map((line) => line.slice(10)));
    for (const version of published) assert.ok(seen.has(version), `acknowledged ${version} is gone: ${context}`);
    const found = lines.find((line) => line.startsWith('found '));
    const [, version = null, number = null] = found?.match(/^found crash\/test@(\S+) (\d+)$/) ?? [];
    assert.equal(version, number === null ? null : `1.0.${number}`, `half of an installation: ${context}`);
    const before: number = installed === null ? 0 : Number(installed.split('.')[2]);
    const after = version === null ? 0 : Number(version.split('.')[2]);
    assert.ok(after >= before && after <= next, `expected what was installed to be ${installed} or newer: ${context}`);

    const acknowledged = lines.filter((line) => line.startsWith('publish ')).map((line) => line.slice(8));
    published = new Set([...seen, ...acknowledged]);
    installed = lines.findLast((line) => line.startsWith('install '))?.slice(8) ?? version;
    // The number that was under way is used again when it did not make it: repeating a publish that was cut short continues it.
    next = Math.max(0, ...[...published].map((one) => Number(one.split('.')[2]))) + 1;
  }
  t.diagnostic(`${published.size} versions were published meanwhile`);
  assert.ok(published.size > 0);
});
