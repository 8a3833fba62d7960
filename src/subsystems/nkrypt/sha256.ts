/**
 * The compression function of SHA-256 (FIPS 180-4), which node:crypto does not offer by itself: labels of the space proof are
 * chains of bare compressions, and the work solver needs the state after the first block.
 */

/** First 32 bits of the fractional parts of the cube (K) and square (IV) roots of the first primes: FIPS 180-4, 4.2.2 and 5.3.3. */
export const K = roots(64, 3);
export const IV = roots(8, 2);

function roots(count: number, degree: 2 | 3): readonly number[] {
  const words: number[] = [];
  for (let candidate = 2; words.length < count; candidate++) {
    let prime = true;
    for (let d = 2; d * d <= candidate; d++) if (candidate % d === 0) prime = false;
    if (prime) words.push(rootFraction(BigInt(candidate), BigInt(degree)));
  }
  return words;
}

/** floor(frac(p^(1/degree)) * 2^32) in integers, by bisection. */
function rootFraction(p: bigint, degree: bigint): number {
  const target = p << (32n * degree);
  let low = 0n;
  let high = 1n << 37n;
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** degree <= target) low = middle;
    else high = middle;
  }
  return Number(BigInt.asIntN(32, low));
}

const schedule = new Int32Array(64);

/** Replaces `state` (8 words) by its compression with `block` (16 words). */
export function compress(state: Int32Array, block: Int32Array): void {
  const w = schedule;
  for (let i = 0; i < 16; i++) w[i] = block[i]!;
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15]!;
    const y = w[i - 2]!;
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
  }
  let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
  for (let i = 0; i < 64; i++) {
    const S1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + S1 + ((e & f) ^ (~e & g)) + K[i]! + w[i]!) | 0;
    const S0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (S0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  state[0]! += a;
  state[1]! += b;
  state[2]! += c;
  state[3]! += d;
  state[4]! += e;
  state[5]! += f;
  state[6]! += g;
  state[7]! += h;
}

/** Words of bytes, most significant byte first, as SHA-256 reads a message. */
export function wordsOf(bytes: Uint8Array): Int32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Int32Array.from({ length: bytes.length / 4 }, (_, i) => view.getInt32(i * 4));
}

/** State after the first 64 bytes of a message. */
export function midstate(prefix: Uint8Array): Int32Array {
  const state = Int32Array.from(IV);
  compress(state, wordsOf(prefix));
  return state;
}
