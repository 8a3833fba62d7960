import { lied } from '../../../wire/channel.ts';

/** Bytes that may still come for streams that this end has given up. */
export class Strays {
  #bytes = 0;

  expect(bytes: number): void {
    this.#bytes += bytes;
  }

  /** Errors: `peer-lied` when more comes than the other end had credit for. */
  came(bytes: number): void {
    this.#bytes -= bytes;
    if (this.#bytes < 0) throw lied('bytes for streams that are not open');
  }
}

/** Numbers of one parity, around and around; 0 is the connection itself. */
export function following(stream: number): number {
  const next = (stream + 2) % 2 ** 32;
  return next === 0 ? 2 : next;
}

/** Bytes that outlive what they arrived in: copied, unless they are most of it. */
export function kept(bytes: Uint8Array): Uint8Array {
  return bytes.length * 2 >= bytes.buffer.byteLength ? bytes : bytes.slice();
}
