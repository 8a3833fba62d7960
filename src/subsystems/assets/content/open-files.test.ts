import assert from 'node:assert/strict';
import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../../../testing/until.ts';
import { OpenFiles } from './open-files.ts';

test('files stay open between uses, as many as are kept, and none is closed while it is read', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'hm-open-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const paths = ['a', 'b', 'c'].map((name) => join(folder, name));
  for (const path of paths) await writeFile(path, path.slice(-1));
  const opened: string[] = [];
  const handles: FileHandle[] = [];
  await using files = new OpenFiles(async (path) => {
    opened.push(path.slice(-1));
    const file = await open(path, 'r');
    handles.push(file);
    return file;
  }, 2);
  const letter = (path: string) =>
    files.use(path, async (file) => {
      const { buffer } = await file.read(Buffer.alloc(1), 0, 1, 0);
      return buffer.toString();
    });
  const [a, b, c] = paths as [string, string, string];

  assert.deepEqual([await letter(a), await letter(a), await letter(b)], ['a', 'a', 'b']);
  assert.deepEqual(opened, ['a', 'b']);
  const reading = files.use(b, async (file) => {
    await letter(c);
    files.forget(b);
    assert.ok(file.fd > 0, 'it is still open');
    return (await file.read(Buffer.alloc(1), 0, 1, 0)).bytesRead;
  });
  assert.equal(await reading, 1);
  assert.deepEqual([files.has(a), files.has(b), files.has(c)], [false, false, true]);
  await assert.rejects(() => files.use(join(folder, 'none'), async () => {}), { code: 'ENOENT' });
  assert.equal(files.has(join(folder, 'none')), false);
  await files[Symbol.asyncDispose]();
  assert.equal(handles.length, 3);
  await until('all are closed', () => handles.every(({ fd }) => fd === -1));
});
