import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { type ConnectionOptions, connect, createServer, type TLSSocket } from 'node:tls';
import { DataFile, PageBuffers } from '../src/subsystems/assets/content/data-file.ts';
import { makeTransportKey } from '../src/subsystems/stoq/channel/certificate.ts';
import { loadBlake3 } from '../src/wire/shards.ts';
import { beReference, type Wanted } from './reference.ts';

/**
 * What no download in Node can do without, one end of it: a file goes into one TLS 1.3 socket and nothing else, and what comes out is hashed with BLAKE3 and
 * SHA-256, written and synced.
 */

const CHUNK = 2 ** 20;
/** What is hashed at once: it is still in the cache of the processor. */
const PART = 2 ** 18;
const READ = 2 ** 16;
const { key, cert } = makeTransportKey();
const TLS = { key, cert, minVersion: 'TLSv1.3', ciphers: 'TLS_AES_128_GCM_SHA256', rejectUnauthorized: false } as const;

async function send(file: FileHandle, socket: TLSSocket): Promise<void> {
  const slabs = [Buffer.allocUnsafeSlow(CHUNK), Buffer.allocUnsafeSlow(CHUNK)] as const;
  let sent = Promise.resolve();
  for (let at = 0; ; ) {
    const { bytesRead, buffer } = await file.read(slabs[(at / CHUNK) & 1]!, 0, CHUNK, at);
    await sent;
    if (bytesRead === 0) break;
    at += bytesRead;
    sent = new Promise((resolve) => socket.write(buffer.subarray(0, bytesRead), () => resolve()));
  }
  socket.destroy();
  await file.close();
}

async function serve(path: string): Promise<number> {
  const server = createServer({ ...TLS, noDelay: true }, (socket) => {
    socket.on('error', () => {});
    void open(path).then((file) => send(file, socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as { port: number }).port;
}

async function get({ port, bytes, into }: Wanted): Promise<number> {
  assert.ok(into !== null, 'what it writes is what it is for');
  const startedAtMs = performance.now();
  const blake3 = (await loadBlake3()).hasher();
  const sha256 = createHash('sha256');
  const buffers = new PageBuffers(CHUNK, 4);
  const file = await DataFile.open(into, bytes, buffers);
  await file.truncate(bytes);
  const all = Promise.withResolvers<void>();
  let chunk = buffers.take();
  let filled = 0;
  let came = 0;
  const writes = new Set<Promise<void>>();
  const onread = {
    buffer: () => chunk.subarray(filled, Math.min(filled + READ, (filled & -PART) + PART)),
    callback(count: number) {
      filled += count;
      came += count;
      if (filled % PART === 0 || came === bytes) {
        const part = chunk.subarray((filled - 1) & -PART, filled);
        blake3.update(part);
        sha256.update(part);
      }
      if (filled < CHUNK && came < bytes) return true;
      const [full, at] = [chunk, came - filled];
      const write = file.write(full.subarray(0, filled), at).then(() => {
        buffers.give(full);
        writes.delete(write);
        socket.resume();
        if (came === bytes && writes.size === 0) all.resolve();
      }, all.reject);
      writes.add(write);
      chunk = buffers.take();
      filled = 0;
      return writes.size < 2;
    },
  };
  // `onread` is missing in the types of TLS.
  const options: ConnectionOptions & { onread: typeof onread } = { ...TLS, port, host: '127.0.0.1', onread };
  const socket = connect(options);
  socket.on('error', all.reject);
  await all.promise;
  blake3.digest();
  sha256.digest();
  await file.sync();
  await file.close();
  socket.destroy();
  return performance.now() - startedAtMs;
}

beReference({ serve, get });
