import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { it } from 'node:test';
import { freshHome } from './support.ts';

interface Runtime {
  readonly kind: string;
  readonly available: boolean;
  readonly reason: string | null;
}

it('a package is asked about once, and runs with what it was granted until that is taken back', async (t) => {
  await using home = await freshHome();
  // One node for all commands: each is far quicker.
  await home.json(['up', '--detach']);
  const { runtimes } = await home.json<{ runtimes: Runtime[] }>(['runtime', 'list']);
  const python = runtimes.find(({ kind }) => kind === 'python');
  if (python?.available !== true) {
    t.skip(python?.reason ?? 'no Python');
    return;
  }
  const server = createServer((socket) => socket.end('from the network'));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const place = `127.0.0.1:${(server.address() as AddressInfo).port}`;

  const folder = join(home.folder, 'fetcher');
  const out = join(home.folder, 'out');
  await mkdir(folder);
  await mkdir(out);
  await chmod(out, 0o777);
  await writeFile(
    join(folder, 'catalog.yaml'),
    `name: ada/fetcher\nversion: 1.0.0\nlanguage: python\nentry: main.py\nresources: { memory: 64MiB }\nsandbox:\n  connect: ["${place}"]\n  folders: { out: write }\n`,
  );
  await writeFile(
    join(folder, 'main.py'),
    `import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/connect/${place}')\nopen('/folders/out/got.txt', 'w').write(s.recv(100).decode())\nprint('"done"')\n`,
  );
  await home.json(['publish', folder]);

  const { stdout } = await home.run('info', 'ada/fetcher');
  assert.match(stdout, /Asks for +a connection to 127\.0\.0\.1:\d+, a folder to write \(out\)/);
  const refused = await home.run('run', 'ada/fetcher');
  assert.equal(refused.status, 4);
  assert.match(refused.stderr, /asks to connect to 127\.0\.0\.1:\d+, and write a folder of yours.*\(grant-needed\)/s);
  assert.match(refused.stderr, /hypermesh run ada\/fetcher@1\.0\.0 --allow 127\.0\.0\.1:\d+ --allow out=/);
  const partly = await home.json<{ error: { code: string } }>(['run', 'ada/fetcher', '--allow', place], 4);
  assert.equal(partly.error.code, 'grant-needed');
  assert.deepEqual((await home.json<{ grants: unknown[] }>(['grants'])).grants, []);

  const allow = ['--allow', place, '--allow', `out=${out}`];
  assert.equal((await home.json(['run', 'ada/fetcher', ...allow]))['output'], 'done');
  assert.equal(await readFile(join(out, 'got.txt'), 'utf8'), 'from the network');
  assert.equal((await home.json(['run', 'ada/fetcher']))['output'], 'done', 'remembered');
  const { grants } = await home.json<{ grants: { ref: string; connect: string[] }[] }>(['grants', 'list']);
  assert.deepEqual([grants[0]?.ref, grants[0]?.connect], ['ada/fetcher@1.0.0', [place]]);

  // Another version is another program.
  await writeFile(
    join(folder, 'catalog.yaml'),
    (await readFile(join(folder, 'catalog.yaml'), 'utf8')).replace('1.0.0', '1.0.1'),
  );
  await home.json(['publish', folder]);
  await home.json(['run', 'ada/fetcher'], 4);
  assert.equal((await home.json(['run', 'ada/fetcher@1.0.0']))['output'], 'done');

  assert.equal((await home.json(['grants', 'revoke', 'ada/fetcher', place]))['revoked'], true);
  await home.json(['run', 'ada/fetcher@1.0.0'], 4);
  assert.equal((await home.json(['grants', 'revoke', 'ada/fetcher']))['revoked'], true);
  assert.equal((await home.json(['grants', 'revoke', 'ada/fetcher']))['revoked'], false);
});
