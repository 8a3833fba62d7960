import assert from 'node:assert/strict';
import { lstat, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ROUTES } from '../../src/api/server.ts';
import { ERRORS, type ErrorCode, isCoded } from '../../src/base/errors.ts';
import type { Json } from '../../src/base/json.ts';
import type { Client } from '../../src/client/index.ts';
import { until } from '../../src/testing/until.ts';
import { assemble } from '../../src/testing/wat.ts';
import type { ProofSet } from '../../src/wire/proof.ts';
import { freshHome, type Home, nodeOf, writePackage } from './support.ts';

/**
 * What somebody does on purpose: another program of this machine, a web page, a package, a prepared folder. Extensions that overstep are
 * in src/testing/extension-conformance.ts (in process and in a cell), programs that break out in src/subsystems/vm/escape.test.ts.
 */

const PASSPHRASE = 'a passphrase that must be seen nowhere';

let home: Home;
let client: Client;
let http: URL;
let token: string;

before(async () => {
  home = await freshHome({ HYPERMESH_PASSPHRASE: PASSPHRASE, HYPERMESH_LOG_LEVEL: 'debug' });
  await home.json(['up', '--detach']);
  const node = await nodeOf(home);
  ({ client, token } = node);
  http = new URL(node.http);
  for (const name of ['plain/one', 'plain/two'])
    await publish({ name, version: '1.0.0', type: 'library' }, { 'a.txt': `the text of ${name}` });
});

after(() => home[Symbol.asyncDispose]());

let n = 0;
function place(): string {
  return join(home.folder, `place-${n++}`);
}

async function publish(
  manifest: Readonly<Record<string, unknown>>,
  files: Readonly<Record<string, string | Uint8Array>>,
): Promise<void> {
  const { packFolder } = await import('../../src/client/folder.ts');
  const packed = await packFolder(await writePackage(place(), manifest, files));
  await client.publish(packed.manifestYaml, (await client.stageLayer(packed.tree)).digest);
}

interface Answer {
  readonly status: number;
  readonly code: ErrorCode | undefined;
  readonly text: string;
}

/** A request as it is written, without what a client would put right. */
async function ask(
  method: string,
  path: string,
  options: { readonly headers?: Record<string, string>; readonly body?: string; readonly token?: string | null } = {},
): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const bearer = options.token === undefined ? token : options.token;
  const sent = request(
    {
      host: http.hostname,
      port: http.port,
      agent: false,
      method,
      path,
      headers: {
        ...(options.body === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(options.body)) }),
        ...(bearer === null ? {} : { authorization: `Bearer ${bearer}` }),
        ...options.headers,
      },
    },
    (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      response.on('end', () => resolve({ status: response.statusCode!, code: codeOf(text), text }));
      response.on('error', reject);
    },
  );
  sent.on('error', reject);
  sent.end(options.body);
  return promise;
}

/** What comes back, until the node closes the connection, for bytes that are sent as they are. */
async function raw(bytes: string): Promise<string> {
  const socket = connect(Number(http.port), http.hostname);
  socket.write(bytes);
  let text = '';
  for await (const part of socket.setEncoding('utf8')) text += part;
  return text;
}

function codeOf(text: string): ErrorCode | undefined {
  try {
    return (JSON.parse(text) as { code?: ErrorCode }).code;
  } catch {
    return undefined;
  }
}

/** A path that a route matches. */
function pathOf(route: { readonly path: string }): string {
  return route.path.replace(':scope', 'plain').replace(':name', 'one');
}

describe('another program of this machine', () => {
  /** Reads that are open on purpose. A route that is not named here must ask for the token. */
  const OPEN = new Set([
    'GET /v1/packages',
    'GET /v1/packages/:scope/:name',
    'GET /v1/packages/:scope/:name/bundle',
    'GET /v1/keys',
    'GET /v1/certificates',
    'GET /v1/network',
    'GET /v1/network/place',
    'GET /v1/network/members',
    'GET /v1/network/validators',
    'GET /v1/network/proposals',
    'GET /v1/network/sequencer',
    'GET /v1/peers',
    'GET /v1/peers/bans',
    'GET /v1/stake',
    'GET /v1/space',
    'GET /v1/health',
    'GET /v1/status',
    'GET /v1/runtimes',
    'GET /v1/metrics',
    'GET /metrics',
    'GET /v1/events',
  ]);
  const guarded = ROUTES.filter(({ method, path }) => !OPEN.has(`${method} ${path}`));

  test('is refused everything that changes, runs or tells of files, without the right token', async () => {
    assert.ok(guarded.length > 15);
    for (const route of guarded) {
      for (const wrong of [null, 'A'.repeat(43), token.slice(1), `${token}A`, token.toLowerCase()]) {
        const { status, code } = await ask(route.method, pathOf(route), {
          token: wrong,
          ...(route.method === 'GET' ? {} : { body: '{}' }),
        });
        assert.deepEqual([status, code], [403, 'not-permitted'], `${route.method} ${route.path}`);
      }
    }
  });

  test('may read what is open, and not with a token that is wrong', async () => {
    for (const path of ['/v1/health', '/v1/packages', '/v1/status', '/v1/keys', '/metrics', '/']) {
      assert.equal((await ask('GET', path, { token: null })).status, 200, path);
      assert.equal((await ask('GET', path, { token: 'A'.repeat(43) })).status, 403, path);
    }
  });

  test('finds no secret in what is open', async () => {
    const secrets = [token, PASSPHRASE];
    for (const path of [
      '/v1/status',
      '/v1/keys',
      '/v1/certificates',
      '/v1/network',
      '/v1/network/place',
      '/v1/peers',
      '/v1/metrics',
      '/metrics',
      '/v1/events?follow=false',
    ]) {
      const { status, text } = await ask('GET', path, { token: null });
      assert.equal(status, 200, path);
      for (const secret of secrets) assert.ok(!text.includes(secret), path);
    }
  });
});

describe('a web page', () => {
  test('cannot reach the node through a name of its own, token or not', async () => {
    for (const host of [
      'evil.example',
      `evil.example:${http.port}`,
      '127.0.0.1.evil.example',
      '0.0.0.0',
      '[::ffff:7f00:1]',
    ])
      for (const path of ['/v1/health', '/', '/v1/none']) {
        const { status, code } = await ask('GET', path, { headers: { host } });
        assert.ok(status === 400 || (status === 403 && code === 'not-permitted'), `${host}${path}: ${status}`);
      }
    assert.match(await raw('GET /v1/health HTTP/1.0\r\n\r\n'), /^HTTP\/1\.1 (400|403) /);
    assert.match(await raw('GET /v1/health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n'), /^HTTP\/1\.1 (400|403) /);
    for (const host of ['localhost', `LOCALHOST:${http.port}`, `127.0.0.1:${http.port}`])
      assert.equal((await ask('GET', '/v1/health', { headers: { host } })).status, 200, host);
  });

  test('gets no leave to read what it asked for', async () => {
    const { promise, resolve } = Promise.withResolvers<Record<string, unknown>>();
    const headers = { origin: 'http://evil.example', 'access-control-request-method': 'GET' };
    request({ host: http.hostname, port: http.port, path: '/v1/status', headers }, (response) => {
      response.resume();
      resolve(response.headers);
    }).end();
    const answered = await promise;
    assert.deepEqual(
      Object.keys(answered).filter((name) => name.startsWith('access-control-')),
      [],
    );
    assert.equal(answered['cross-origin-resource-policy'], 'same-origin');
    assert.notEqual((await ask('OPTIONS', '/v1/packages', { headers })).status, 200);
  });
});

describe('a client that sends too much, too slowly, or nonsense', () => {
  test('is told the limit of bodies and headers', async () => {
    const announced = await raw(
      `POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: ${18 * 2 ** 20}\r\n\r\n{`,
    );
    assert.match(announced, /^HTTP\/1\.1 413 .*limit-exceeded/s);
    const headers = { 'x-large': 'x'.repeat(20_000) };
    assert.equal((await ask('GET', '/v1/health', { headers })).status, 431);
    const deep = `${'['.repeat(5_000)}${']'.repeat(5_000)}`;
    assert.equal((await ask('POST', '/v1/runs', { body: `{"ref":"plain/one","input":${deep}}` })).code, 'usage');
  });

  test('without a token is sent away before its body is read', async () => {
    const text = await raw(
      'POST /v1/layers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000000\r\n\r\nabc',
    );
    assert.match(text, /^HTTP\/1\.1 403 /);
  });

  test('is told why a large upload is refused while it still sends, and can go on asking', async () => {
    async function* nonsense(pieces: number) {
      for (let n = 0; n < pieces; n++) yield new Uint8Array(65_536).fill(7);
    }
    for (const pieces of [1, 1_000])
      await assert.rejects(client.stageLayer(nonsense(pieces)), (error) => isCoded(error, 'tree-invalid'));
    // Past the moment at which the rest of such a body is cut off.
    for (let n = 0; n < 11; n++) {
      await sleep(500);
      await client.health();
    }
  });

  test('that stops in the middle of an upload leaves nothing behind', async () => {
    const before = await client.status();
    const socket = connect(Number(http.port), http.hostname);
    socket.write(
      `POST /v1/layers HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\n`,
    );
    const temporary = join(home.home, 'assets', 'content', 'tmp');
    await until('it is written', async () => (await readdir(temporary)).length > 0);
    socket.destroy();
    await until('nothing is left of it', async () => (await readdir(temporary)).length === 0);
    assert.deepEqual((await client.status()).totals, before.totals);
  });

  test('gets a coded refusal for every kind of nonsense, and never an internal error', async () => {
    const bodies = [
      '',
      '{',
      'null',
      '[]',
      '"x"',
      '7',
      '{"__proto__":{"x":1}}',
      '{"constructor":{"prototype":{}}}',
      '\ufeff{}',
      '{"a":1e999}',
      '{"bundle":1e999}',
      '{"bundle":{"a":-1e999}}',
      '{"bundle":{}}',
      '{"bundle":null}',
      '{"digest":"sha256:00"}',
      `{"digest":"sha256:${'0'.repeat(64)}"}`,
      '{"ref":"../../etc/passwd"}',
      '{"ref":"a/b@\\u0000"}',
      '{"ref":"plain/one","input":1e999}',
      '{"refs":["plain/none"],"root":"/\\u0000"}',
      '{"refs":["plain/one"],"root":"relative"}',
      '{"refs":[],"lock":{"packages":1e999}}',
      '{"refs":["plain/one"],"locked":true}',
      '{"names":["\\ud800/x"]}',
      '{"names":[]}',
      '{"role":"root"}',
      '{"action":"lock","amount":1e308}',
      '{"action":"lock","amount":-1}',
      '{"action":"transfer","amount":1,"to":"../x"}',
      '{"proofs":{}}',
      '{"proofs":[1e999]}',
      '{"kind":"publish","subject":"sha256:00"}',
      `{"manifestYaml":"a: &a [*a]","layer":"sha256:${'0'.repeat(64)}"}`,
      '{"state":"yanked","reason":"x","range":"not a range"}',
      '{"state":"published","reason":"\\ud800"}',
      '{"fingerprint":"zz","reason":"superseded"}',
      '{"scrub":"yes"}',
    ];
    const paths = [
      '?range=%00',
      '?range=%ff',
      '?range=^^^',
      '?limit=-1',
      '?limit=1e9',
      '?cursor=x',
      '?cursor[]=x',
      '?text=%27%22)(*',
      '?text=NEAR(a,b)*^',
      '?text=%f0%9f%92%a9%00',
      '?type=__proto__',
      '?root=..',
      '?after=-1',
      '?last=99999',
      '?pattern=%28a%2B%2B',
      '?__proto__=1',
      '?follow=false&after=9e15',
    ];
    const silent = new Set(['/v1/shutdown', '/v1/state']);
    let asked = 0;
    const refused = async (method: string, path: string, body?: string) => {
      const headers = { accept: 'application/json' };
      const { status, code, text } = await ask(method, path, body === undefined ? { headers } : { headers, body });
      asked += 1;
      const what = `${method} ${path} ${body ?? ''}: ${status} ${text.slice(0, 300)}`;
      assert.notEqual(status, 500, what);
      if (status >= 400) assert.ok(code !== undefined && code !== 'internal' && Object.hasOwn(ERRORS, code), what);
      assert.ok(!/\bat .+:\d+:\d+|node_modules|src\//.test(text), `a stack trace: ${what}`);
    };
    for (const route of ROUTES) {
      if (silent.has(route.path)) continue;
      const path =
        route.method === 'GET' ? pathOf(route) : route.path.replace(':scope', 'none').replace(':name', 'such');
      if (route.method === 'GET' && route.path !== '/v1/events')
        for (const query of paths) await refused('GET', path + query);
      else if (route.path === '/v1/events')
        for (const query of paths) await refused('GET', `${path}${query}&follow=false`);
      else for (const body of bodies) await refused(route.method, path, body);
    }
    for (const name of [
      '..',
      '%2e%2e',
      '..%2f..%2fetc',
      '%00',
      '%ff',
      'a%2fb',
      '-rf',
      '__proto__',
      'x'.repeat(90),
      'x'.repeat(5_000),
    ]) {
      await refused('GET', `/v1/packages/${name}/${name}`);
      await refused('GET', `/v1/packages/plain/${name}`);
      await refused('DELETE', `/v1/packages/none/${name}?range=*`);
    }
    assert.ok(asked > 800, String(asked));
    // Whatever was among them that is allowed, nothing of it touched the packages.
    assert.equal((await client.search({})).total, 2);
  });
});

describe('text from a package', () => {
  // Colours, the title of the window, one-byte controls, text that runs backwards, marks that cannot be seen.
  const BAD = '\u001b[31mred\u001b]0;title\u0007\u009b2J\u202etxt.exe\u2066\u200b\u00ad\u{e0041}';
  const VISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;

  async function shows(...args: string[]): Promise<string> {
    const { stdout, stderr } = await home.run(...args);
    const text = (stdout + stderr).replaceAll(/[\t\n]/g, '');
    assert.doesNotMatch(text, VISIBLE, JSON.stringify(text));
    return text;
  }

  async function printing(name: string, output: string): Promise<void> {
    const bytes = Buffer.from(output);
    const data = [...bytes].map((byte) => `\\${byte.toString(16).padStart(2, '0')}`).join('');
    const wasm = await assemble(`(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 100) "${data}")
      (func (export "_start")
        (i32.store (i32.const 0) (i32.const 100))
        (i32.store (i32.const 4) (i32.const ${bytes.length}))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))))`);
    const manifest = { name, version: '1.0.0', type: 'package', language: 'wasm', entry: 'main.wasm' };
    await publish(manifest, { 'main.wasm': wasm });
  }

  test('that moves, hides or reverses is made visible wherever it is printed', async () => {
    await publish({ name: 'bad/words', version: '1.0.0', type: 'library', description: BAD, authors: [BAD] }, {}).catch(
      (error: unknown) => assert.ok(isCoded(error, 'manifest-invalid'), String(error)),
    );
    await publish(
      {
        name: 'bad/words',
        version: '1.0.1',
        type: 'library',
        description: 'r\u202eeversed\u2066 \u200bh\u00ad\u{e0041}',
      },
      {},
    );
    await client.setState('bad/words@1.0.1', 'deprecated', BAD);
    for (const args of [
      ['search', 'bad'],
      ['info', 'bad/words'],
      ['events'],
      ['search', BAD],
      ['install', BAD],
      ['info', `bad/words@${BAD}`],
    ])
      await shows(...args);
    await shows('info', 'bad/words', '--json');
    await shows('search', 'bad', '--json');
  });

  test('that a program prints is made visible, as text and as JSON, and stays JSON', async () => {
    await printing('bad/text', BAD);
    await printing('bad/json', JSON.stringify({ [BAD]: BAD }));
    assert.match(await shows('run', 'bad/text'), /red/);
    assert.match(await shows('run', 'bad/json'), /red/);
    await shows('run', 'bad/json', '--json');
    const { stdout } = await home.run('run', 'bad/json');
    assert.deepEqual(JSON.parse(stdout), { [BAD]: BAD });
  });
});

describe('secrets', () => {
  test('are in no log and in no answer, even with every line logged', async () => {
    for (const args of [['status'], ['keys'], ['cert'], ['doctor'], ['metrics'], ['events']]) {
      const { stdout, stderr } = await home.run(...args, '--json');
      for (const secret of [token, PASSPHRASE]) assert.ok(!(stdout + stderr).includes(secret), args.join(' '));
    }
    const logs = await readdir(join(home.home, 'logs'));
    assert.ok(logs.includes('node.log'));
    for (const log of logs) {
      const text = await readFile(join(home.home, 'logs', log), 'utf8');
      for (const secret of [token, PASSPHRASE]) assert.ok(!text.includes(secret), log);
      assert.doesNotMatch(text, /PRIVATE KEY|secretKey/, log);
    }
    for (const told of ['environ', 'cmdline']) {
      const text = await readFile(`/proc/${(await nodeOf(home)).pid}/${told}`, 'utf8').catch(() => '');
      for (const secret of [token, PASSPHRASE]) assert.ok(!text.includes(secret), told);
    }
  });

  test('lie where only their owner can read', async () => {
    for (const [file, mode] of [
      ['.', 0o700],
      ['node.json', 0o600],
      ['logs/node.log', 0o600],
      ['trust', 0o700],
    ] as const)
      assert.equal((await lstat(join(home.home, file))).mode & 0o777, mode, file);
  });
});

describe('proofs and bundles of others', () => {
  test('are refused for another package, through the API', async () => {
    const [one, two] = await Promise.all([client.bundle('plain/one'), client.bundle('plain/two')]);
    for (const key of ['proofs', 'endorsement', 'inclusion', 'signature', 'manifest', 'config'] as const) {
      await assert.rejects(
        client.verify({ bundle: { ...one, [key]: two[key] } as unknown as Json }),
        (error) => isCoded(error) && ERRORS[error.code].exit === 7,
        key,
      );
    }
    const stolen: ProofSet = {
      ...one.proofs,
      challenge: {
        ...one.proofs.challenge,
        operation: { ...one.proofs.challenge.operation, subject: two.proofs.challenge.operation.subject },
      },
    };
    const verdicts = await client.verifyProofs(stolen as unknown as Json);
    assert.ok(verdicts.some(({ verdict }) => verdict === 'invalid'));
    const whole: ProofSet = { ...two.proofs, challenge: one.proofs.challenge };
    assert.ok((await client.verifyProofs(whole as unknown as Json)).some(({ verdict }) => verdict === 'invalid'));
  });

  test('of another network are refused here, and hold in their own', async () => {
    await using other = await freshHome();
    const file = join(other.folder, 'other.json');
    const source = await writePackage(join(other.folder, 'source'), {
      name: 'plain/one',
      version: '1.0.0',
      type: 'library',
    });
    await other.json(['publish', source, '--bundle', file]);
    const bundle = JSON.parse(await readFile(file, 'utf8')) as Json & { network: { id: string } };
    await assert.rejects(client.verify({ bundle }), (error) => isCoded(error, 'network-mismatch'));
    const { networkId } = await client.network();
    const refused = await home.json<{ error: { code: string } }>(
      ['verify', file, '--offline', '--genesis', networkId],
      6,
    );
    assert.equal(refused.error.code, 'network-mismatch');
    assert.equal((await home.json(['verify', file, '--offline']))['networkId'], bundle.network.id);
  });
});

describe('a folder to install into', () => {
  async function fresh(): Promise<string> {
    const folder = place();
    await mkdir(folder);
    return folder;
  }

  /** Things that are not ours, which must be there afterwards as they were. */
  async function precious(): Promise<{ readonly folder: string; untouched(): Promise<void> }> {
    const folder = await fresh();
    await mkdir(join(folder, 'letters'));
    await writeFile(join(folder, 'letters', 'a.txt'), 'dear');
    await writeFile(join(folder, 'b.txt'), 'b');
    return {
      folder,
      async untouched() {
        assert.deepEqual((await readdir(folder, { recursive: true })).sort(), ['b.txt', 'letters', 'letters/a.txt']);
        assert.equal(await readFile(join(folder, 'letters', 'a.txt'), 'utf8'), 'dear');
      },
    };
  }

  const refuses = (work: Promise<unknown>, says: RegExp) =>
    assert.rejects(
      work,
      (error) => isCoded(error) && error.code !== 'internal' && says.test(`${error.message} ${error.hint}`),
    );

  test('that is reached through a link is the folder it leads to', async () => {
    const [folder, link] = [await fresh(), place()];
    await symlink(folder, link);
    const { root } = await client.install({ refs: ['plain/one'], root: link });
    assert.equal(root, folder);
    assert.equal(await readFile(join(link, 'packages/plain/one/a.txt'), 'utf8'), 'the text of plain/one');
  });

  test('in which `packages` is a file, a folder or a link elsewhere is refused and left alone', async () => {
    for (const plant of [
      (at: string) => writeFile(at, 'mine'),
      (at: string) => mkdir(at),
      (at: string) => symlink('/etc', at),
      (at: string) => symlink('../../..', at),
      (at: string) => symlink('.hypermesh/generations/../../../etc', at),
    ]) {
      const root = await fresh();
      await plant(join(root, 'packages'));
      const before = await lstat(join(root, 'packages'));
      await refuses(client.install({ refs: ['plain/one'], root }), /packages/);
      await refuses(client.installed(root), /packages|./).catch(() => undefined);
      assert.deepEqual(
        [before.ino, before.mtimeMs],
        await lstat(join(root, 'packages')).then(({ ino, mtimeMs }) => [ino, mtimeMs]),
      );
    }
  });

  for (const part of ['.hypermesh', '.hypermesh/temporary', '.hypermesh/trees', '.hypermesh/generations']) {
    test(`in which ${part} is a link to other files is refused, and nothing there is removed`, async () => {
      const [root, other] = [await fresh(), await precious()];
      for (const name of ['.hypermesh', '.hypermesh/temporary', '.hypermesh/trees', '.hypermesh/generations']) {
        if (part === name) await symlink(other.folder, join(root, name));
        else if (!name.startsWith(`${part}/`)) await mkdir(join(root, name), { recursive: true });
      }
      await client.installed(root).catch(() => undefined);
      await refuses(client.install({ refs: ['plain/one'], root }), /link|folder/);
      await other.untouched();
    });
  }

  test('in which the lock file, a lock or a database is a link, a pipe or endless does not stop the node', async () => {
    for (const planted of ['hypermesh.lock', '.hypermesh/generations/1/lock.json', '.hypermesh/exclusive.db']) {
      for (const target of ['/dev/zero', '/etc/passwd', 'pipe']) {
        const root = await fresh();
        await client.install({ refs: ['plain/one'], root });
        await rm(join(root, planted), { force: true });
        if (target === 'pipe') (await import('node:child_process')).spawnSync('mkfifo', [join(root, planted)]);
        else await symlink(target, join(root, planted));
        const signal = AbortSignal.timeout(120_000);
        await client
          .installed(root, { signal })
          .catch((error: unknown) =>
            assert.ok(isCoded(error) && error.code !== 'cancelled', `${planted} ${target} ${error}`),
          );
        await client
          .install({ refs: ['plain/two'], root }, { signal })
          .catch((error: unknown) =>
            assert.ok(isCoded(error) && error.code !== 'cancelled', `${planted} ${target} ${error}`),
          );
        assert.ok((await client.health({ signal: AbortSignal.timeout(120_000) })).ok);
      }
    }
  });

  test('that holds a forged tree of the package does not get it installed', async () => {
    const [root, honest] = [await fresh(), await fresh()];
    await client.install({ refs: ['plain/one'], root: honest });
    const [tree] = await readdir(join(honest, '.hypermesh/trees'));
    const forged = join(root, '.hypermesh/trees', tree!);
    await mkdir(forged, { recursive: true });
    await writeFile(join(forged, 'a.txt'), 'the text of somebody else');
    await client.install({ refs: ['plain/one'], root });
    assert.equal(await readFile(join(root, 'packages/plain/one/a.txt'), 'utf8'), 'the text of plain/one');
  });

  test('that was tampered with afterwards changes neither what is verified nor what runs', async () => {
    const root = await fresh();
    const { path } = (await client.install({ refs: ['plain/one'], root })).installed[0]!;
    await writeFile(join(path, 'a.txt'), 'the text of somebody else');
    await writeFile(join(path, 'extra.txt'), '');
    assert.equal((await client.installed(root)).length, 1);
    assert.equal((await client.verify({ ref: 'plain/one' })).checks.at(-1)!.check, 'content');
    // A folder that is not what it should be is put back when it is made anew.
    await client.uninstall(['plain/one'], root);
    await client.install({ refs: ['plain/one'], root });
    assert.equal(await readFile(join(root, 'packages/plain/one/a.txt'), 'utf8'), 'the text of plain/one');
    assert.deepEqual((await readdir(path)).sort(), ['a.txt', 'catalog.yaml']);
  });

  test('whose trees were replaced by a link while it was used is not written through', async () => {
    const [root, other] = [await fresh(), await precious()];
    await client.install({ refs: ['plain/one'], root });
    await rename(join(root, '.hypermesh/trees'), join(root, 'away'));
    await symlink(other.folder, join(root, '.hypermesh/trees'));
    await refuses(client.install({ refs: ['plain/two'], root }), /link|folder/);
    await refuses(client.uninstall(['plain/one'], root), /link|folder/);
    await other.untouched();
  });
});
