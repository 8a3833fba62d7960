/**
 * The erasure code of coded content (docs/protocol/coding.md): k fragments are the content itself, cut into equal parts, and m more are sums of them over
 * GF(2^8), with the coefficients of a Cauchy matrix. Every k of the k + m give each of the others.
 */

/** Powers of 2 and their logarithms in GF(2^8) with x^8 + x^4 + x^3 + x^2 + 1; the powers twice, so that no sum of two logarithms is out of them. */
const POWER = new Uint8Array(510);
const LOGARITHM = new Uint8Array(256);
for (let exponent = 0, value = 1; exponent < 255; exponent++) {
  POWER[exponent] = value;
  POWER[exponent + 255] = value;
  LOGARITHM[value] = exponent;
  value = (value << 1) ^ (value & 0x80 ? 0x11d : 0);
}

function product(a: number, b: number): number {
  return a === 0 || b === 0 ? 0 : POWER[LOGARITHM[a]! + LOGARITHM[b]!]!;
}

function inverse(a: number): number {
  return POWER[255 - LOGARITHM[a]!]!;
}

/** What a fragment is in terms of the first k: one coefficient for each. */
function definition(fragment: number, k: number): Uint8Array {
  return Uint8Array.from({ length: k }, (_, part) =>
    fragment < k ? Number(fragment === part) : inverse(fragment ^ part),
  );
}

/** What the fragment `wanted` is in terms of k different others: one coefficient for each of `have`, in that order. */
export function coefficientsOf(wanted: number, have: readonly number[]): Uint8Array {
  const k = have.length;
  // Gauss-Jordan over the definitions of what is there, turned so that the k unknown coefficients are solved for.
  const definitions = have.map((fragment) => definition(fragment, k));
  const target = definition(wanted, k);
  const rows = Array.from({ length: k }, (_, part) =>
    Uint8Array.of(...definitions.map((of) => of[part]!), target[part]!),
  );
  for (let column = 0; column < k; column++) {
    const pivot = rows.findIndex((row, at) => at >= column && row[column] !== 0);
    if (pivot < 0) throw new RangeError('the fragments are not different ones');
    [rows[column], rows[pivot]] = [rows[pivot]!, rows[column]!];
    const scale = inverse(rows[column]![column]!);
    const row = rows[column]!.map((value) => product(value, scale));
    rows[column] = row;
    for (const [at, other] of rows.entries()) {
      const factor = other[column]!;
      if (at === column || factor === 0) continue;
      for (let i = column; i <= k; i++) other[i]! ^= product(row[i]!, factor);
    }
  }
  return Uint8Array.from(rows, (row) => row[k]!);
}

/** erasure.wat, compiled: sixteen bytes in one step, by looking the two halves of each up in a register. */
const ERASURE_WASM =
  'AGFzbQEAAAABBQFgAX8AAwIBAAUDAQAJBxACBm1lbW9yeQIAA2FkZAAACmwBagIBfwN7QQD9AAQAIQJBEP0ABAAhAwJAA0AgASAATw0BIAH9AATA' +
  'gBAhBCABIAH9AARAIAIgBP0MDw8PDw8PDw8PDw8PDw8PD/1O/Q4gAyAEQQT9bf0O/VH9Uf0LBEAgAUEQaiEBDAALCws=';

interface Kernel {
  readonly memory: WebAssembly.Memory;
  add(length: number): void;
}

/** Compiled when something is coded for the first time. */
let compiled: WebAssembly.Module | undefined;

const SUM = 64;
/** Bytes that are combined in one go: some tenths of a millisecond for each coefficient. */
const PIECE = 2 ** 18;

/**
 * Bytes `offset` to `offset + length` of a sum of fragments, in pieces that are valid until the next one is asked for. `read` fills a buffer with bytes of the
 * fragment that the coefficient at that place belongs to. Memory: half a mebibyte, whatever the length.
 */
export async function* combined(
  coefficients: Uint8Array,
  offset: number,
  length: number,
  read: (place: number, offset: number, into: Uint8Array) => Promise<void>,
): AsyncGenerator<Uint8Array, void, undefined> {
  compiled ??= new WebAssembly.Module(Uint8Array.fromBase64(ERASURE_WASM));
  const kernel = new WebAssembly.Instance(compiled, {}).exports as unknown as Kernel;
  const { buffer } = kernel.memory;
  const products = new Uint8Array(buffer, 0, 32);
  const sum = new Uint8Array(buffer, SUM, PIECE);
  const added = new Uint8Array(buffer, SUM + PIECE, PIECE);
  for (let at = offset; at < offset + length; at += PIECE) {
    const bytes = Math.min(PIECE, offset + length - at);
    sum.fill(0, 0, bytes + 16);
    for (const [place, coefficient] of coefficients.entries()) {
      if (coefficient === 0) continue;
      await read(place, at, added.subarray(0, bytes));
      for (let half = 0; half < 16; half++) {
        products[half] = product(coefficient, half);
        products[16 + half] = product(coefficient, half << 4);
      }
      kernel.add(bytes);
    }
    yield sum.subarray(0, bytes);
  }
}
