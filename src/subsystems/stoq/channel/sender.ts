import type { Duplex } from 'node:stream';
import { concat } from '../../../base/bytes.ts';
import { CHANNEL_LIMITS, encodeFrame, FRAME_HEADER_BYTES, type Frame, writeHeader } from '../../../wire/channel.ts';
import type { Slabs } from './slabs.ts';

/** Frames besides data that may wait for a peer who does not read. */
const CONTROL_BYTES_MAX = 32 * 2 ** 20;
/** Less than that is not worth a frame at the end of a slab. */
const DATA_BYTES_MIN = 1_024;
const EMPTY = new Uint8Array(0);

/** What this end sends on a stream, paid for with credit. */
export interface Outgoing {
  readonly stream: number;
  credit: number;
  bytes: Uint8Array;
  at: number;
  /** When something was sent last, or the first time. */
  movedAtMs: number;
  /** All of `bytes` has left; called again when credit comes after that. */
  spent(): void;
}

export interface SenderLent {
  readonly socket: Duplex;
  readonly slabs: Slabs;
  /** More waits than this end keeps for a peer who does not read. */
  overrun(): void;
  /** Something has left. */
  sent(): void;
}

export function newOutgoing(stream: number, credit: number, spent: () => void): Outgoing {
  return { stream, credit, bytes: EMPTY, at: 0, movedAtMs: performance.now(), spent };
}

/** Writes the frames of one end into its socket, a slab at a time: control frames first, then data of all streams in turn. */
export class Sender {
  readonly #lent: SenderLent;
  readonly #control: (readonly [Uint8Array, Uint8Array])[] = [];
  readonly #ready = new Set<Outgoing>();
  #controlBytes = 0;
  #scheduled = false;
  /** A slab is on its way into the socket. */
  #writing = false;
  #ended = false;
  bytesOut = 0;

  constructor(lent: SenderLent) {
    this.#lent = lent;
  }

  /** Frames besides data that wait. */
  get controlBytes(): number {
    return this.#controlBytes;
  }

  /** What is not data goes first. */
  send(frame: Frame): void {
    if (this.#ended) return;
    const parts = encodeFrame(frame);
    this.#control.push(parts);
    this.#controlBytes += parts[0].length + parts[1].length;
    if (this.#controlBytes > CONTROL_BYTES_MAX) this.#lent.overrun();
    else this.#schedule();
  }

  offer(outgoing: Outgoing): void {
    if (outgoing.at === outgoing.bytes.length) outgoing.spent();
    else if (outgoing.credit > 0) {
      this.#ready.add(outgoing);
      this.#schedule();
    }
  }

  credit(outgoing: Outgoing, bytes: number): void {
    outgoing.credit = Math.min(outgoing.credit + bytes, Number.MAX_SAFE_INTEGER);
    this.offer(outgoing);
  }

  /** Nothing more of it is sent. */
  withdraw(outgoing: Outgoing): void {
    this.#ready.delete(outgoing);
  }

  /** Nothing more is sent at all. */
  end(): void {
    this.#ended = true;
    this.#control.length = 0;
    this.#controlBytes = 0;
    this.#ready.clear();
  }

  #schedule(): void {
    if (this.#scheduled || this.#writing) return;
    this.#scheduled = true;
    // Frames of one turn leave together.
    process.nextTick(() => {
      this.#scheduled = false;
      this.#pump();
    });
  }

  /**
   * Fills one slab with frames and writes it; the next one when the socket has taken it. So frames gather while the socket is busy, nothing is
   * allocated, and little waits where it cannot be overtaken any more.
   */
  #pump(): void {
    if (this.#ended || this.#writing) return;
    if (this.#control.length === 0 && this.#ready.size === 0) return;
    const { slabs, socket } = this.#lent;
    const slab = slabs.take();
    let at = 0;
    let control = this.#control[0];
    for (; control !== undefined; control = this.#control[0]) {
      const [head, bytes] = control;
      const size = head.length + bytes.length;
      if (at + size > slab.length) break;
      slab.set(head, at);
      slab.set(bytes, at + head.length);
      at += size;
      this.#controlBytes -= size;
      this.#control.shift();
    }
    if (control === undefined) at = this.#fill(slab, at);
    // Only the hello of a network with long revocation lists is longer than a slab.
    const bytes = at > 0 ? slab.subarray(0, at) : concat(...this.#control.shift()!);
    if (at === 0) this.#controlBytes -= bytes.length;
    this.bytesOut += bytes.length;
    this.#writing = true;
    socket.write(bytes, () => {
      slabs.give(slab);
      this.#writing = false;
      this.#lent.sent();
      this.#pump();
    });
  }

  /** Streams take turns. */
  #fill(slab: Buffer, from: number): number {
    let at = from;
    for (const outgoing of this.#ready) {
      const room = slab.length - at - FRAME_HEADER_BYTES;
      if (room < DATA_BYTES_MIN) break;
      this.#ready.delete(outgoing);
      const size = Math.min(CHANNEL_LIMITS.payloadBytesMax, outgoing.credit, room, outgoing.bytes.length - outgoing.at);
      writeHeader(slab, 'data', outgoing.stream, size, at);
      slab.set(outgoing.bytes.subarray(outgoing.at, outgoing.at + size), at + FRAME_HEADER_BYTES);
      at += FRAME_HEADER_BYTES + size;
      outgoing.at += size;
      outgoing.credit -= size;
      outgoing.movedAtMs = performance.now();
      // Added again it comes last, and the loop goes on to it.
      this.offer(outgoing);
    }
    return at;
  }
}
