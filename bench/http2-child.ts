import { createReadStream, createWriteStream } from 'node:fs';
import http2 from 'node:http2';
import { pipeline } from 'node:stream/promises';
import { makeTransportKey } from '../src/subsystems/stoq/channel/certificate.ts';
import { beReference, type Wanted } from './reference.ts';

/** The reference for downloads, one end of it: node:http2 over TLS 1.3, nothing verified. */

const CHUNK = 2 ** 20;

async function serve(path: string): Promise<number> {
  const { key, cert } = makeTransportKey();
  const server = http2.createSecureServer({ key, cert, minVersion: 'TLSv1.3' });
  server.on('sessionError', () => {});
  server.on('stream', (stream: http2.ServerHttp2Stream) => {
    stream.on('error', () => {});
    stream.respond({ ':status': 200 });
    createReadStream(path, { highWaterMark: CHUNK }).pipe(stream);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as { port: number }).port;
}

/** With `window` the credits of session and stream; without, those that Node has by default. */
async function get(asked: Wanted): Promise<number> {
  const startedAtMs = performance.now();
  const settings = asked.window === undefined ? {} : { settings: { initialWindowSize: asked.window } };
  const session = http2.connect(`https://127.0.0.1:${asked.port}`, { rejectUnauthorized: false, ...settings });
  if (asked.window !== undefined) {
    await new Promise((resolve) => session.once('connect', resolve));
    session.setLocalWindowSize(asked.window);
  }
  const stream = session.request({ ':path': '/' });
  if (asked.into === null) for await (const _ of stream);
  else await pipeline(stream, createWriteStream(asked.into, { highWaterMark: CHUNK, flush: true }));
  session.destroy();
  return performance.now() - startedAtMs;
}

beReference({ serve, get });
