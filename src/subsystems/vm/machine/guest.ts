/**
 * The node's side of the guest contract (docs/protocol/guest.md): what is said over the control port of a virtual machine.
 */
import type { Readable } from 'node:stream';
import { base64, concat, utf8 } from '../../../base/bytes.ts';

/** How a guest says that its program ended. */
export type GuestEnd = { readonly kind: 'exit'; readonly status: number } | { readonly kind: 'memory' };

export type GuestWord = { readonly kind: 'ready' } | GuestEnd;

export interface GuestStart {
  /** Milliseconds since the epoch. */
  readonly nowMs: number;
  /** 64 bytes, fresh for this run: guests that begin as copies of one another must not draw the same numbers. */
  readonly randomness: Uint8Array;
  readonly environment: Readonly<Record<string, string>>;
  readonly args: readonly string[];
  readonly program: string;
}

const RANDOM_BYTES = 64;
const LINE_BYTES_MAX = 256;
const LINES_MAX = 16;

export function encodeStart(start: GuestStart): Uint8Array {
  if (start.randomness.length !== RANDOM_BYTES) throw new RangeError(`A guest is given ${RANDOM_BYTES} random bytes.`);
  const time = new DataView(new ArrayBuffer(16));
  time.setBigInt64(0, BigInt(Math.floor(start.nowMs / 1_000)), true);
  time.setBigInt64(8, BigInt(Math.floor(start.nowMs % 1_000)) * 1_000_000n, true);
  const text = (value: string) => base64(utf8(value));
  return concat(
    utf8('wake 80\n'),
    new Uint8Array(time.buffer),
    start.randomness,
    ...Object.entries(start.environment).map(([name, value]) => utf8(`environment ${name} ${text(value)}\n`)),
    utf8(`program ${text(start.program)}\n`),
    ...start.args.map((value) => utf8(`argument ${text(value)}\n`)),
    utf8('start\n'),
  );
}

/** The words of a guest, one on each line. Fails with an Error that says what the guest did wrong. */
export async function* readGuest(control: Readable): AsyncGenerator<GuestWord, void, undefined> {
  let rest = '';
  let lines = 0;
  for await (const piece of piecesOf(control)) {
    rest += piece.toString('latin1');
    for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n')) {
      lines += 1;
      if (lines > LINES_MAX) throw new Error(`it said more than ${LINES_MAX} lines on the control port`);
      yield parseLine(rest.slice(0, end).trim());
      rest = rest.slice(end + 1);
    }
    if (rest.length > LINE_BYTES_MAX)
      throw new Error(`it said a line of more than ${LINE_BYTES_MAX} bytes on the control port`);
  }
}

function parseLine(line: string): GuestWord {
  if (line === 'ready 1') return { kind: 'ready' };
  if (line === 'memory') return { kind: 'memory' };
  const status = /^exit (\d{1,3})$/.exec(line)?.[1];
  if (status !== undefined && Number(status) <= 255) return { kind: 'exit', status: Number(status) };
  throw new Error(`it said ${JSON.stringify(line.slice(0, 60))} on the control port`);
}

async function* piecesOf(control: Readable): AsyncIterable<Buffer> {
  try {
    yield* control as AsyncIterable<Buffer>;
  } catch {
    // The socket of a box that was killed may end by an error.
  }
}
