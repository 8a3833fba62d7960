import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { utf8 } from '../../src/base/bytes.ts';
import { type ErrorCode, isCoded } from '../../src/base/errors.ts';
import type { Json } from '../../src/base/json.ts';
import { packFolder } from '../../src/client/folder.ts';
import type { Client } from '../../src/client/index.ts';
import { writePackageFile } from '../../src/client/pack.ts';
import { verifyBundleOffline } from '../../src/hypermesh.ts';
import { type Bundle, decodeBundle } from '../../src/wire/bundle.ts';
import { freshHome, type Home, nodeOf, PROJECT, writePackage } from './support.ts';

/**
 * What goes wrong in people's hands, through the command they use: each refusal has a code, says what came and what to do, ends with
 * the status of its class, and leaves the catalog as it was.
 */

interface Refusal {
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string };
}

let home: Home;
let client: Client;
let n = 0;

before(async () => {
  home = await freshHome();
  await home.json(['up', '--detach']);
  ({ client } = await nodeOf(home));
});

after(() => home[Symbol.asyncDispose]());

const MANIFEST = { name: 'bad/input', version: '1.0.0', type: 'library' };

async function refuses(args: readonly string[], status: number, code: string, says: RegExp): Promise<void> {
  const before = await state();
  const { error } = await home.json<Refusal>(args, status);
  assert.equal(error.code, code, error.message);
  assert.match(`${error.message} ${error.hint ?? ''}`, says);
  assert.deepEqual(await state(), before, 'the refusal changed the catalog');
}

/** Everything that is published, and how much is begun and not finished. */
async function state(): Promise<unknown> {
  return [await client.search({ limit: 100 }), await readdir(join(home.home, 'assets/content/tmp'))];
}

/** Publishes what is not the matter of a test, without a process of its own. */
async function publish(
  manifest: Readonly<Record<string, unknown>>,
  files: Readonly<Record<string, string>> = {},
): Promise<void> {
  const packed = await packFolder(await folderOf(manifest, files));
  await client.publish(packed.manifestYaml, (await client.stageLayer(packed.tree)).digest);
}

function place(): string {
  return join(home.folder, `input-${n++}`);
}

async function folderOf(
  manifest: Readonly<Record<string, unknown>>,
  files: Readonly<Record<string, string>> = {},
): Promise<string> {
  return writePackage(place(), manifest, files);
}

async function folderWithYaml(yaml: string): Promise<string> {
  const folder = place();
  await mkdir(folder);
  await writeFile(join(folder, 'catalog.yaml'), yaml);
  return folder;
}

describe('a manifest', () => {
  const yaml: readonly (readonly [string, string, string, RegExp])[] = [
    ['with an unknown key', 'name: bad/input\nversion: 1.0.0\nverison: 2\n', 'manifest-invalid', /line 3|:3:|3:/],
    ['with a wrong type', 'name: bad/input\nversion: [1]\n', 'manifest-invalid', /version/],
    ['with an invalid version', 'name: bad/input\nversion: one\n', 'manifest-invalid', /semantic version/],
    [
      'that is a YAML bomb',
      `a: &a [x,x]\n${['b', 'c', 'd'].map((k, i) => `${k}: &${k} [*${'abc'[i]},*${'abc'[i]}]`).join('\n')}\n`,
      'manifest-invalid',
      /alias|anchor|unknown|line/i,
    ],
    [
      'of 10 MB',
      `name: bad/input\nversion: 1.0.0\ndescription: ${'x'.repeat(10_000_000)}\n`,
      'manifest-invalid',
      /256 KiB|larger|at most/,
    ],
    ['that is not YAML', '{{{{', 'manifest-invalid', /YAML|line|1:/],
    [
      'with a missing entry',
      'name: bad/input\nversion: 1.0.0\nlanguage: wasm\nentry: gone.wasm\n',
      'entry-missing',
      /gone\.wasm/,
    ],
    [
      'that depends on itself',
      'name: bad/input\nversion: 1.0.0\ndependencies: {bad/input: "*"}\n',
      'manifest-invalid',
      /itself/,
    ],
  ];
  for (const [what, text, code, says] of yaml) {
    test(what, async () => refuses(['publish', await folderWithYaml(text)], 3, code, says));
  }

  test('that is not there', async () => {
    const folder = place();
    await mkdir(folder);
    await refuses(['publish', folder], 3, 'manifest-missing', /catalog\.yaml/);
  });

  test('with a dependency that does not exist', async () =>
    refuses(
      ['publish', await folderOf({ ...MANIFEST, dependencies: { 'no/such': '^1.0.0' } })],
      6,
      'dependency-conflict',
      /no\/such/,
    ));

  test('of a version that was published with other content', async () => {
    await publish({ ...MANIFEST, name: 'bad/twice' }, { 'a.txt': 'one' });
    await refuses(
      ['publish', await folderOf({ ...MANIFEST, name: 'bad/twice' }, { 'a.txt': 'two' })],
      6,
      'version-exists',
      /raise `version`/,
    );
  });

  test('that closes a cycle of dependencies', async () => {
    await publish({ ...MANIFEST, name: 'cycle/a' });
    await publish({ ...MANIFEST, name: 'cycle/b', dependencies: { 'cycle/a': '*' } });
    const closing = await folderOf({
      ...MANIFEST,
      name: 'cycle/a',
      version: '2.0.0',
      dependencies: { 'cycle/b': '*' },
    });
    await refuses(['publish', closing], 3, 'dependency-cycle', /cycle\/a.*cycle\/b/);
  });
});

describe('a tree', () => {
  test('with a link out of the folder', async () => {
    const folder = await folderOf(MANIFEST);
    await symlink('../../etc', join(folder, 'out'));
    await refuses(['publish', folder], 3, 'tree-invalid', /out/);
  });

  test('with an absolute link', async () => {
    const folder = await folderOf(MANIFEST);
    await symlink('/etc/passwd', join(folder, 'abs'));
    await refuses(['publish', folder], 3, 'tree-invalid', /abs/);
  });

  test('with a fifo', async () => {
    const folder = await folderOf(MANIFEST);
    spawnSync('mkfifo', [join(folder, 'pipe')]);
    await refuses(['publish', folder], 3, 'tree-invalid', /pipe/);
  });

  test('with names that differ only by case', async () =>
    refuses(
      ['publish', await folderOf(MANIFEST, { 'Read.txt': 'a', 'read.txt': 'b' })],
      3,
      'tree-invalid',
      /[Rr]ead\.txt/,
    ));

  test('with names that differ only by Unicode form', async () =>
    refuses(
      ['publish', await folderOf(MANIFEST, { '\u00e9.txt': 'a', 'e\u0301.txt': 'b' })],
      3,
      'tree-invalid',
      /differ|clash|same/i,
    ));
});

describe('a tree that is sent to the node as it is', () => {
  interface Header {
    readonly path: string;
    readonly type?: string;
    readonly target?: string;
    readonly uid?: number;
    readonly size?: number;
  }

  /** One block of ustar, canonical but for what is asked. */
  function header({ path, type = '0', target = '', uid = 0, size = 0 }: Header): Uint8Array {
    const block = new Uint8Array(512);
    const octal = (at: number, digits: number, value: number) =>
      block.set(utf8(value.toString(8).padStart(digits, '0')), at);
    block.set(utf8(path), 0);
    octal(100, 7, type === '2' ? 0o777 : type === '5' ? 0o755 : 0o644);
    for (const at of [116, 329, 337]) octal(at, 7, 0);
    octal(108, 7, uid);
    octal(124, 11, size);
    octal(136, 11, 0);
    block.set(utf8(type), 156);
    block.set(utf8(target), 157);
    block.set(utf8('ustar\u000000'), 257);
    block.fill(0x20, 148, 156);
    octal(
      148,
      6,
      block.reduce((sum, byte) => sum + byte, 0),
    );
    block[154] = 0;
    return block;
  }

  async function* tar(headers: readonly Header[]): AsyncIterable<Uint8Array> {
    for (const one of headers) yield header(one);
    yield new Uint8Array(1_024);
  }

  test('is taken when it is canonical: these tests differ from it in one thing each', async () => {
    const { size } = await client.stageLayer(
      tar([{ path: 'a/', type: '5' }, { path: 'a/b' }, { path: 'l', type: '2', target: 'a/b' }]),
    );
    assert.equal(size, 3 * 512 + 1_024);
  });

  const trees: Readonly<Record<string, readonly Header[]>> = {
    'an absolute path': [{ path: '/etc/passwd' }],
    'a path that climbs': [{ path: '../x' }],
    'a path that climbs in the middle': [{ path: 'a/', type: '5' }, { path: 'a/../../x' }],
    'the path of the folder itself': [{ path: './', type: '5' }],
    'an empty path': [{ path: '' }],
    'a backslash': [{ path: 'a\\..\\b' }],
    'a control character': [{ path: 'a\u001b[31m' }],
    'a character device': [{ path: 'null', type: '3' }],
    'a block device': [{ path: 'sda', type: '4' }],
    'a pipe': [{ path: 'pipe', type: '6' }],
    'a hard link': [{ path: 'a' }, { path: 'b', type: '1', target: 'a' }],
    'a link to an absolute path': [{ path: 'l', type: '2', target: '/etc/passwd' }],
    'a link that climbs out': [{ path: 'l', type: '2', target: '../x' }],
    'a link that climbs through another': [
      { path: 'a/', type: '5' },
      { path: 'a/l', type: '2', target: '..' },
      { path: 'm', type: '2', target: 'a/l/../../x' },
    ],
    'a file below a link': [{ path: 'l', type: '2', target: '.' }, { path: 'l/a' }],
    'a file below a file': [{ path: 'a' }, { path: 'a/b' }],
    'a path twice': [{ path: 'a' }, { path: 'a' }],
    'the wrong order': [{ path: 'b' }, { path: 'a' }],
    'names that differ by case': [{ path: 'A' }, { path: 'a' }],
    'names that differ by Unicode form': [{ path: 'e\u0301' }, { path: '\u00e9' }],
    'an owner': [{ path: 'a', uid: 1_000 }],
    'a size that it does not have': [{ path: 'a', size: 4_096 }],
    'a size past all limits': [{ path: 'a', size: 8 ** 11 - 1 }],
  };

  test('is refused with a code for every unsafe or unusual entry, and nothing of it is kept', async () => {
    const before = await state();
    const { totals } = await client.status();
    for (const [what, headers] of Object.entries(trees))
      await assert.rejects(
        client.stageLayer(tar(headers)),
        (error) => isCoded(error, 'tree-invalid') && error.message.length > 20,
        what,
      );
    assert.deepEqual(await state(), before);
    assert.deepEqual((await client.status()).totals, totals);
  });

  test('with 1,000,001 entries is refused at that entry, in bounded memory, while the node answers', async (t) => {
    const entries = 1_000_001;
    let sent = 0;
    async function* endless(): AsyncIterable<Uint8Array> {
      const blocks = 1_000;
      const piece = new Uint8Array(blocks * 512);
      // The digits of the name, and so its checksum, are all that changes from one header to the next.
      const first = header({ path: 'f0000000' });
      const base = 8 * 0x20 + first.reduce((sum, byte, at) => sum + (at < 148 || at > 155 ? byte : 0), 0);
      for (let at = 0; at < piece.length; at += 512) piece.set(first, at);
      for (let entry = 0; entry < 2 * entries; ) {
        for (let at = 0; at < piece.length; at += 512, entry++) {
          let sum = base;
          for (let digit = 7, rest = entry; digit > 0; digit--, rest = Math.trunc(rest / 10)) {
            piece[at + digit] = 0x30 + (rest % 10);
            sum += rest % 10;
          }
          for (let digit = 5, rest = sum; digit >= 0; digit--, rest >>= 3) piece[at + 148 + digit] = 0x30 + (rest & 7);
        }
        sent += piece.length;
        yield piece.slice();
      }
    }
    const before = await state();
    await assert.rejects(
      client.stageLayer(endless()),
      (error) => isCoded(error, 'limit-exceeded') && /1000000|1,000,000/.test(error.message),
    );
    assert.ok(sent < entries * 512 + 2 ** 27, `${sent} bytes were taken before the refusal`);
    const { memory } = await client.status();
    t.diagnostic(`resident afterwards: ${Math.round(memory.residentBytes / 2 ** 20)} MiB`);
    assert.ok(memory.residentBytes < 2 ** 30);
    assert.deepEqual(await state(), before);
  });
});

describe('a folder', () => {
  const other = 65_534;
  /** This program as another user, who is not root: files that root can read are not readable to them. */
  function packAs(folder: string, out: string) {
    const bin = join(PROJECT, 'bin', 'hypermesh.js');
    return spawnSync(process.execPath, [bin, 'pack', folder, '--out', out, '--json'], {
      ...(process.getuid?.() === 0 ? { uid: other, gid: other } : {}),
      env: { PATH: process.env['PATH'], HOME: '/nonexistent' },
      encoding: 'utf8',
    });
  }

  test('with a file or folder that cannot be read', async (t) => {
    const base = await mkdtemp(join(tmpdir(), 'hypermesh-unreadable-'));
    t.after(() => rm(base, { recursive: true, force: true }));
    await chmod(base, 0o777);
    const folder = await writePackage(join(base, 'source'), MANIFEST, { 'secret.txt': 'a', 'inner/b.txt': 'b' });
    await chmod(folder, 0o755);
    const fine = packAs(folder, join(base, 'fine.hmp'));
    if (fine.status !== 0)
      return t.skip(`this program cannot be run as another user here: ${fine.stderr || fine.stdout}`);
    for (const [path, mode] of [
      ['secret.txt', 0o644],
      ['inner', 0o755],
    ] as const) {
      await chmod(join(folder, path), 0);
      const { status, stdout } = packAs(folder, join(base, 'out.hmp'));
      await chmod(join(folder, path), mode);
      const { error } = JSON.parse(stdout) as Refusal;
      assert.deepEqual([status, error.code], [3, 'tree-invalid']);
      assert.match(error.message, new RegExp(`${path}.*may not read`));
    }
    assert.deepEqual((await readdir(base)).sort(), ['fine.hmp', 'source']);
  });

  test('whose manifest is a pipe, a folder or a device', async () => {
    for (const plant of [
      (at: string) => spawnSync('mkfifo', [at]),
      (at: string) => mkdir(at),
      (at: string) => symlink('/dev/zero', at),
    ]) {
      const folder = place();
      await mkdir(folder);
      await plant(join(folder, 'catalog.yaml'));
      await refuses(['publish', folder], 3, 'manifest-invalid', /catalog\.yaml/);
    }
  });
});

describe('a packed file', () => {
  async function packed(): Promise<string> {
    const file = `${place()}.hmp`;
    await writePackageFile(
      await folderOf({ ...MANIFEST, name: 'bad/packed' }, { 'a.txt': 'content '.repeat(1_000) }),
      file,
    );
    return file;
  }

  test('that is truncated', async () => {
    const file = await packed();
    const bytes = await readFile(file);
    await writeFile(file, bytes.subarray(0, bytes.length / 2));
    await refuses(['publish', file], 3, 'package-file-invalid', /./);
  });

  test('with a bit flipped anywhere', async () => {
    const file = await packed();
    const bytes = await readFile(file);
    for (const at of [0, 0.3, 0.8].map((part) => Math.floor(part * bytes.length))) {
      const bad = Buffer.from(bytes);
      bad[at]! ^= 1;
      await writeFile(file, bad);
      await refuses(['publish', file], 3, 'package-file-invalid', /./);
    }
  });
});

describe('a bundle file', () => {
  test('that is truncated or altered is refused offline, without a home', async () => {
    const file = `${place()}.bundle`;
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'bad/bundle' }), '--bundle', file]);
    const fine = await home.json<{ ref: string }>(['verify', file, '--offline']);
    assert.equal(fine.ref, 'bad/bundle@1.0.0');

    const bytes = await readFile(file);
    await writeFile(file, bytes.subarray(0, bytes.length - 10));
    assert.equal((await home.json<Refusal>(['verify', file, '--offline'], 7)).error.code, 'bundle-invalid');
    for (const part of [0.1, 0.7]) {
      const bad = Buffer.from(bytes);
      bad[Math.floor(part * bad.length)]! ^= 1;
      await writeFile(file, bad);
      const { error } = await home.json<Refusal>(['verify', file, '--offline'], 7);
      assert.notEqual(error.code, 'internal');
    }
  });
});

describe('a bundle', () => {
  let bundle: Bundle;
  const DAY_MS = 86_400_000;

  before(async () => {
    await publish({ ...MANIFEST, name: 'bad/signed' });
    bundle = await client.bundle('bad/signed');
    await verifyBundleOffline(bundle);
  });

  const refused = (work: Promise<unknown>, ...codes: ErrorCode[]) =>
    assert.rejects(work, (error) => isCoded(error, ...codes));
  const withEnvelope = (change: Partial<Bundle['signature']['envelope']>): Bundle => ({
    ...bundle,
    signature: { ...bundle.signature, envelope: { ...bundle.signature.envelope, ...change } },
  });

  test('signed by one algorithm only', async () => {
    const { signatures } = bundle.signature.envelope;
    for (const left of [
      [signatures[0]!],
      [signatures[1]!],
      [],
      [signatures[0]!, signatures[0]!],
      [signatures[1]!, signatures[0]!],
    ])
      await refused(verifyBundleOffline(withEnvelope({ signatures: left })), 'signature-invalid');
  });

  test('with a signature that says the same in other bytes', async () => {
    const [falcon, ed25519] = bundle.signature.envelope.signatures as [Signature, Signature];
    type Signature = Bundle['signature']['envelope']['signatures'][number];
    for (const sig of [
      `${falcon.sig}=`,
      falcon.sig.replaceAll('+', '-').replaceAll('/', '_'),
      `${falcon.sig}\n`,
      Buffer.concat([Buffer.from(falcon.sig, 'base64'), Buffer.alloc(1)]).toString('base64'),
      Buffer.from(falcon.sig, 'base64').subarray(0, -1).toString('base64'),
    ]) {
      if (sig === falcon.sig) continue;
      await refused(
        verifyBundleOffline(withEnvelope({ signatures: [{ ...falcon, sig }, ed25519] })),
        'signature-invalid',
      );
    }
    // S + L of Ed25519 (RFC 8032): equal modulo the order of the group, and refused.
    const bytes = Buffer.from(ed25519.sig, 'base64');
    const order = 2n ** 252n + 27742317777372353535851937790883648493n;
    let s = BigInt(`0x${Buffer.from(bytes.subarray(32)).reverse().toString('hex')}`) + order;
    for (let at = 32; at < 64; at++, s >>= 8n) bytes[at] = Number(s & 255n);
    const sig = bytes.toString('base64');
    await refused(
      verifyBundleOffline(withEnvelope({ signatures: [falcon, { ...ed25519, sig }] })),
      'signature-invalid',
    );
  });

  test('by another key, or with the certificates of another home', async () => {
    await using other = await freshHome();
    const file = join(other.folder, 'other.json');
    await other.json(['publish', await folderOf({ ...MANIFEST, name: 'bad/signed' }), '--bundle', file]);
    const foreign = decodeBundle(await readFile(file));
    await refused(verifyBundleOffline({ ...bundle, signature: foreign.signature }), 'certificate-invalid');
    const { envelope } = foreign.signature;
    await refused(
      verifyBundleOffline({ ...bundle, signature: { ...bundle.signature, envelope } }),
      'signature-invalid',
    );
    const { chain } = foreign.signature;
    await refused(
      verifyBundleOffline({ ...bundle, signature: { ...bundle.signature, chain } }),
      'certificate-invalid',
      'signature-invalid',
    );
    const { anchor } = foreign.network;
    await refused(verifyBundleOffline({ ...bundle, network: { ...bundle.network, anchor } }), 'certificate-invalid');
  });

  test('admitted when the certificate had expired, or was not valid yet', async () => {
    for (const days of [91, -1_000]) {
      const votes = bundle.endorsement.votes.map((vote) => ({ ...vote, atMs: vote.atMs + days * DAY_MS }));
      await refused(
        verifyBundleOffline({ ...bundle, endorsement: { ...bundle.endorsement, votes } }),
        'certificate-expired',
      );
    }
  });

  test('of a publisher whose certificate was revoked since: refused wherever the network is known, for a stolen key', async () => {
    await using revoking = await freshHome();
    await revoking.json(['up', '--detach']);
    const node = (await nodeOf(revoking)).client;
    const packed = await packFolder(await folderOf({ ...MANIFEST, name: 'bad/signed' }));
    await node.publish(packed.manifestYaml, (await node.stageLayer(packed.tree)).digest);
    const before = await node.bundle('bad/signed');
    const { fingerprint } = (await node.keys()).publisher;
    // Revocation dates have whole seconds.
    await sleep(1_100);
    await node.renewCertificate('publisher');
    await node.revokeCertificate(fingerprint, 'superseded');
    // What was signed before an orderly end stays good.
    await node.verify({ ref: 'bad/signed' });
    await node.revokeCertificate((await node.keys()).publisher.fingerprint, 'key-compromise');
    await refused(node.verify({ ref: 'bad/signed' }), 'certificate-revoked');
    await refused(node.verify({ bundle: before as unknown as Json }), 'certificate-revoked');
    await refused(node.install({ refs: ['bad/signed'], root: join(revoking.folder, 'here') }), 'certificate-revoked');
    const { anchor } = await node.network();
    await refused(verifyBundleOffline({ ...before, network: { ...before.network, anchor } }), 'certificate-revoked');
  });
});

describe('what is asked for', () => {
  test('does not exist', async () => refuses(['install', 'no/such'], 5, 'package-not-found', /search/));
  test('has no such version', async () => refuses(['info', 'cycle/a@^9.0.0'], 5, 'version-not-found', /1\.0\.0/));
  test('is no reference', async () => refuses(['install', 'Not A Ref'], 2, 'usage', /scope\/name/));
  test('is not a program', async () => refuses(['run', 'cycle/a'], 3, 'not-runnable', /language/));
  test('is depended upon and cannot be deleted', async () =>
    refuses(['delete', 'cycle/a@1.0.0'], 6, 'has-dependents', /cycle\/b/));
  test('cannot be satisfied together', async () => {
    await publish({ ...MANIFEST, name: 'fit/c', version: '1.0.0' });
    await publish({ ...MANIFEST, name: 'fit/c', version: '2.0.0' });
    await publish({ ...MANIFEST, name: 'fit/a', dependencies: { 'fit/c': '^1.0.0' } });
    await publish({ ...MANIFEST, name: 'fit/b', dependencies: { 'fit/c': '^2.0.0' } });
    await refuses(
      ['install', 'fit/a', 'fit/b'],
      6,
      'dependency-conflict',
      /fit\/a.*fit\/c.*fit\/b|fit\/b.*fit\/c.*fit\/a/s,
    );
  });
});

describe('a home', () => {
  test('that is open already', async () => {
    const { error } = await home.json<Refusal>(['up', '--detach'], 6);
    assert.equal(error.code, 'home-in-use');
  });

  test('that is a file', async () => {
    const file = place();
    await copyFile(import.meta.filename, file);
    const { error } = await home.json<Refusal>(['search', '--home', file], 10);
    assert.match(error.code, /^storage-/);
  });

  test('whose keys others can read', async () => {
    await using loose = await freshHome();
    await loose.json(['search']);
    const keys = spawnSync('find', [loose.home, '-name', '*.key', '-o', '-name', 'key*'], { encoding: 'utf8' })
      .stdout.trim()
      .split('\n');
    assert.ok(keys[0], 'no key file found');
    for (const file of keys) await chmod(file, 0o644);
    const { error } = await loose.json<Refusal>(['keys'], 7);
    assert.equal(error.code, 'key-invalid');
  });

  test('with a wrong passphrase', async () => {
    await using locked = await freshHome({ HYPERMESH_PASSPHRASE: 'right' });
    await locked.json(['search']);
    const file = join(locked.folder, 'passphrase');
    await writeFile(file, 'wrong\n', { mode: 0o600 });
    const { error } = await locked.json<Refusal>(['search', '--passphrase-file', file], 4);
    assert.equal(error.code, 'key-locked');
  });

  test('with the passphrase from before it was changed', async () => {
    await using locked = await freshHome({ HYPERMESH_PASSPHRASE: 'first' });
    await locked.json(['search']);
    const file = join(locked.folder, 'second');
    await writeFile(file, 'second\n', { mode: 0o600 });
    await locked.json(['passphrase', '--new-passphrase-file', file]);
    const { error } = await locked.json<Refusal>(['search'], 4);
    assert.equal(error.code, 'key-locked');
    await locked.json(['search', '--passphrase-file', file]);
  });
});
