import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { isCoded } from '../base/errors.ts';
import { openHome } from './home.ts';

const base = await mkdtemp(join(tmpdir(), 'home-'));
after(() => rm(base, { recursive: true, force: true }));
let serial = 0;
const fresh = () => join(base, `home-${serial++}`);

describe('openHome()', () => {
  it('makes a private folder with a format file and opens it again', async () => {
    const path = fresh();
    {
      await using home = await openHome(path);
      assert.equal(home.directory, path);
      assert.equal((await stat(path)).mode & 0o777, 0o700);
      assert.equal((await stat(await home.folder('assets'))).mode & 0o777, 0o700);
    }
    assert.deepEqual(JSON.parse(await readFile(join(path, 'home.json'), 'utf8')), { formatVersion: 3 });
    await (await openHome(path))[Symbol.asyncDispose]();
  });

  it('refuses a second opener, with the pid, until the first is gone', async () => {
    const path = fresh();
    const first = await openHome(path);
    await assert.rejects(
      openHome(path),
      (error) => isCoded(error, 'home-in-use') && error.details?.['pid'] === process.pid,
    );
    await first[Symbol.asyncDispose]();
    await (await openHome(path))[Symbol.asyncDispose]();
  });

  it('is free again after the process that held it was killed', async () => {
    const path = fresh();
    const script = `const { openHome } = await import(${JSON.stringify(new URL('./home.ts', import.meta.url).href)});
      globalThis.home = await openHome(${JSON.stringify(path)}); process.stdout.write('open'); setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    await assert.rejects(
      openHome(path),
      (error) => isCoded(error, 'home-in-use') && error.details?.['pid'] === child.pid,
    );
    child.kill('SIGKILL');
    await once(child, 'exit');
    await (await openHome(path))[Symbol.asyncDispose]();
  });

  it("refuses a file, a path below a file, another format, a damaged format and a stranger's open folder", async () => {
    const file = fresh();
    await writeFile(file, '');
    await assert.rejects(openHome(file), (error) => isCoded(error, 'storage-read-only'));
    await assert.rejects(openHome(join(file, 'below')), (error) => isCoded(error, 'storage-read-only'));

    const newer = fresh();
    await (await openHome(newer))[Symbol.asyncDispose]();
    await writeFile(join(newer, 'home.json'), '{"formatVersion":99}');
    await assert.rejects(openHome(newer), (error) => isCoded(error, 'home-too-new'));
    await writeFile(join(newer, 'home.json'), '{"formatVersion":1,"complete":true}');
    await assert.rejects(openHome(newer), (error) => isCoded(error, 'home-too-old'));
    await writeFile(join(newer, 'home.json'), '{"formatV');
    await assert.rejects(openHome(newer), (error) => isCoded(error, 'storage-failed'));

    const open = fresh();
    await (await openHome(open))[Symbol.asyncDispose]();
    await rm(join(open, 'home.json'));
    await chmod(open, 0o755);
    await assert.rejects(openHome(open), (error) => isCoded(error, 'storage-read-only'));
    assert.equal((await stat(open)).mode & 0o777, 0o755);
  });

  it('makes a folder private that is empty, or holds what a new home has beforehand, unless others can write there', async () => {
    const path = fresh();
    await mkdir(join(path, 'logs'), { recursive: true });
    await writeFile(join(path, 'config.yaml'), '');
    await chmod(path, 0o777);
    await assert.rejects(openHome(path), (error) => isCoded(error, 'storage-read-only') && /logs/.test(error.message));
    await chmod(path, 0o755);
    await (await openHome(path))[Symbol.asyncDispose]();
    assert.equal((await stat(path)).mode & 0o777, 0o700);
  });

  it('refuses a place where nothing can be made', { skip: process.platform !== 'linux' }, async () => {
    await assert.rejects(openHome('/proc/no-such-home'), (error) =>
      isCoded(error, 'storage-failed', 'storage-read-only'),
    );
    const deep = join(fresh(), 'a', 'b');
    await (await openHome(deep))[Symbol.asyncDispose]();
  });

  it('heals what a crash before a rename left', async () => {
    const path = fresh();
    await (await openHome(path))[Symbol.asyncDispose]();
    await writeFile(join(path, 'home.json.new'), 'half');
    await rm(join(path, 'home.json'));
    await (await openHome(path))[Symbol.asyncDispose]();
    assert.ok(!(await readdir(path)).includes('home.json.new'));
  });

  it('refuses a home that cannot be written', { skip: process.getuid?.() === 0 }, async () => {
    const path = fresh();
    await (await openHome(path))[Symbol.asyncDispose]();
    await chmod(path, 0o500);
    await assert.rejects(openHome(path), (error) => isCoded(error, 'storage-read-only'));
    await chmod(path, 0o700);
  });
});
