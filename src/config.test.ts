import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { isCoded } from './base/errors.ts';
import { loadConfig, parseHttpAddress } from './config.ts';

let home: string;
before(async () => {
  home = await mkdtemp(path.join(tmpdir(), 'hm-config-'));
});
after(() => rm(home, { recursive: true, force: true }));

async function withFile(yaml: string) {
  await writeFile(path.join(home, 'config.yaml'), yaml);
  return loadConfig({ home }, {});
}

test('loadConfig() has a default for everything', async () => {
  const { config, secrets } = await loadConfig({}, {});
  assert.deepEqual(config, {
    home: path.join(homedir(), '.hypermesh'),
    http: { host: '127.0.0.1', port: 0 },
    logLevel: 'info',
    network: {},
    peers: { limits: {} },
    extensions: [],
  });
  assert.deepEqual(secrets, {});
});

test('loadConfig() says which of the two is empty', async () => {
  await assert.rejects(loadConfig({ home: '' }, {}), /--home is empty/);
  await assert.rejects(loadConfig({}, { HYPERMESH_HOME: '' }), /HYPERMESH_HOME is empty/);
});

test('loadConfig() lets flags win over the environment, and that over the file', async () => {
  await writeFile(path.join(home, 'config.yaml'), 'http: 127.0.0.1:1000\nlogLevel: warn\nsubject: Ada\n');
  const env = { HYPERMESH_HOME: home, HYPERMESH_HTTP: '127.0.0.1:2000' };
  const fromFile = (await loadConfig({ home }, {})).config;
  assert.deepEqual([fromFile.http.port, fromFile.logLevel, fromFile.subject], [1000, 'warn', 'Ada']);
  assert.equal((await loadConfig({}, env)).config.http.port, 2000);
  assert.equal((await loadConfig({ http: '3000' }, env)).config.http.port, 3000);
});

test('loadConfig() reads the numbers of a new network', async () => {
  const { config } = await withFile(`
network:
  stakeInitial: 5000
  space: { bytes: 1MiB, iterations: 2 }
  requirements:
    install: { space: null, stake: null, work: { hexDigits: 1 }, time: null }
`);
  assert.deepEqual(config.network, {
    stakeInitial: 5000,
    space: { bytes: 2 ** 20, iterations: 2 },
    requirements: { install: { kind: 'install', space: null, stake: null, work: { hexDigits: 1 }, time: null } },
  });
});

test('loadConfig() reads how to deal with other nodes', async () => {
  const { config } = await withFile('peers: { uploadBytesPerSecond: 1MiB, pace: { probeMs: 500, patienceMs: 90000 } }');
  assert.deepEqual(config.peers, {
    limits: { uploadBytesPerSecond: 2 ** 20 },
    pace: { probeMs: 500, patienceMs: 90_000 },
  });
});

test('loadConfig() refuses what it does not know, and says where', async () => {
  const cases: readonly (readonly [yaml: string, says: RegExp])[] = [
    ['htp: x', /htp/],
    ['network: { space: { bites: 1 } }', /network\.space/],
    ['peers: { pace: { probeMs: 0 } }', /peers\.pace\.probeMs/],
    ['threads: many', /threads/],
    ['logLevel: loud', /logLevel/],
    ['http: 1\nhttp: 2', /not valid YAML/],
    ['a: &x [1]\nb: *x', /config\.yaml/],
    ['- 1', /top level/],
    [`subject: ${'x'.repeat(300_000)}`, /larger/],
  ];
  for (const [yaml, says] of cases) {
    await assert.rejects(
      withFile(yaml),
      (error) => isCoded(error, 'config-invalid') && says.test(error.message),
      yaml.slice(0, 60),
    );
  }
});

test('loadConfig() takes the passphrase from the file that is named, else from the environment, and keeps it apart', async () => {
  await rm(path.join(home, 'config.yaml'), { force: true });
  const file = path.join(home, 'passphrase');
  await writeFile(file, 'correct horse\n', { mode: 0o600 });
  const env = { HYPERMESH_PASSPHRASE: 'from the environment' };
  assert.deepEqual((await loadConfig({ home }, env)).secrets, { passphrase: 'from the environment' });
  const loaded = await loadConfig({ home, passphraseFile: file }, env);
  assert.deepEqual(loaded.secrets, { passphrase: 'correct horse' });
  assert.doesNotMatch(JSON.stringify(loaded.config), /correct horse/);
  await assert.rejects(() => loadConfig({ home, passphraseFile: `${file}.none` }, {}), { code: 'config-invalid' });
});

test('loadConfig() says so when the configuration cannot be read', { skip: process.getuid?.() === 0 }, async () => {
  const folder = path.join(home, 'closed');
  await mkdir(folder);
  await writeFile(path.join(folder, 'config.yaml'), '');
  await chmod(path.join(folder, 'config.yaml'), 0);
  await assert.rejects(() => loadConfig({ home: folder }, {}), { code: 'storage-read-only' });
});

test('parseHttpAddress() reads the forms that people type', () => {
  const cases: readonly (readonly [string, string, number])[] = [
    ['127.0.0.1:4000', '127.0.0.1', 4000],
    ['127.0.0.1', '127.0.0.1', 0],
    ['localhost', 'localhost', 0],
    ['localhost:80', 'localhost', 80],
    ['4000', '127.0.0.1', 4000],
    [':4000', '127.0.0.1', 4000],
    ['[::1]:4000', '::1', 4000],
    ['0.0.0.0:0', '0.0.0.0', 0],
  ];
  for (const [text, host, port] of cases) assert.deepEqual(parseHttpAddress(text), { host, port }, text);
  for (const text of ['', '127.0.0.1:65536', 'http://127.0.0.1', 'a b', '::1', '127.0.0.1:x', '1:2:3']) {
    assert.throws(() => parseHttpAddress(text), { code: 'config-invalid' }, text);
  }
});
