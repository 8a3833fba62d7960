import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { utf8 } from '../../base/bytes.ts';
import { isCoded } from '../../base/errors.ts';
import { changePassphrase, openTrust } from './index.ts';

const log2N = 10;
let base: string;
before(async () => {
  base = await mkdtemp(join(tmpdir(), 'hypermesh-passphrase-'));
});
after(() => rm(base, { recursive: true }));

/** The key id of the publisher, after a signature by it. */
async function open(directory: string, passphrase?: string): Promise<string> {
  const limits = { passphraseLog2N: log2N };
  const options = { directory, clock: { nowMs: () => Date.UTC(2026, 0, 1) }, limits };
  await using trust = await openTrust({ ...options, ...(passphrase === undefined ? {} : { passphrase }) });
  await trust.sign('publisher', 'text/plain', utf8('signed'));
  return (await trust.identity('publisher')).keyId;
}

const to = (text: string) => ({ log2N, next: () => Promise.resolve(text) });
const locked = (promise: Promise<unknown>) => assert.rejects(promise, (error) => isCoded(error, 'key-locked'));

test('changePassphrase() replaces a key file, then a passphrase; the keys stay, what opened them does not', async () => {
  const directory = join(base, 'change');
  const id = await open(directory);
  await changePassphrase({ directory, ...to('first') });
  assert.ok(!(await readdir(directory)).includes('unlock.key'));
  await locked(open(directory));
  assert.equal(await open(directory, 'first'), id);
  const { sealed } = rows(directory)[0]!;
  await changePassphrase({ directory, passphrase: 'first', ...to('second') });
  await locked(open(directory, 'first'));
  assert.equal(await open(directory, 'second'), id);
  const { ciphertext } = JSON.parse(sealed) as { ciphertext: string };
  for (const name of await readdir(directory)) {
    assert.ok(!(await readFile(join(directory, name), 'latin1')).includes(ciphertext.slice(0, 64)), name);
  }
});

test('changePassphrase() asks for the new one only when the old one is right, and changes nothing when it fails', async () => {
  const directory = join(base, 'fail');
  const id = await open(directory, 'old');
  const before = rows(directory);
  await locked(changePassphrase({ directory, passphrase: 'wrong', next: () => assert.fail('asked too early') }));
  await assert.rejects(changePassphrase({ directory, passphrase: 'old', ...to('') }), (error) =>
    isCoded(error, 'config-invalid'),
  );
  const given = new Error('given up');
  const giveUp = { directory, passphrase: 'old', next: () => Promise.reject(given) };
  await assert.rejects(changePassphrase(giveUp), given);
  assert.deepEqual(rows(directory), before);
  assert.equal(await open(directory, 'old'), id);
});

test('a crash at any moment leaves a home that the old or the new passphrase opens', async () => {
  const directory = join(base, 'crash');
  const id = await open(directory, 'p0');
  const script = join(base, 'child.mjs');
  const module = new URL('./passphrase.ts', import.meta.url);
  await writeFile(
    script,
    `import { changePassphrase } from ${JSON.stringify(module.href)};
     const [directory, passphrase, wanted] = process.argv.slice(2);
     const next = async () => (process.stdout.write('now'), wanted);
     await changePassphrase({ directory, passphrase, next, log2N: ${log2N} });`,
  );
  let current = 'p0';
  for (let round = 1; round <= 4; round++) {
    const child = spawn(process.execPath, [script, directory, current, `p${round}`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const ended = once(child, 'exit');
    await once(child.stdout, 'data');
    await sleep((round - 1) * 4);
    child.kill('SIGKILL');
    await ended;
    const opened: string[] = [];
    for (const passphrase of [current, `p${round}`]) {
      try {
        assert.equal(await open(directory, passphrase), id);
        opened.push(passphrase);
      } catch (error) {
        if (!isCoded(error, 'key-locked')) throw error;
      }
    }
    assert.equal(opened.length, 1, `round ${round}`);
    current = opened[0]!;
  }
});

function rows(directory: string): readonly { readonly name: string; readonly sealed: string }[] {
  const raw = new DatabaseSync(join(directory, 'trust.db'), { readOnly: true });
  try {
    return raw.prepare('SELECT name, sealed FROM keystore ORDER BY name').all() as { name: string; sealed: string }[];
  } finally {
    raw.close();
  }
}
