/**
 * The time proof: Pietrzak's verifiable delay function (docs/protocol/proofs.md, "Time").
 *
 * Group: quadratic residues modulo RSA-2048, the modulus of the RSA Factoring Challenge whose factors nobody is known to have, with
 * x and -x taken as one element and the smaller one as its name. Squarings are done by OpenSSL: raising to 2^1024 is one RSA
 * operation without padding. Where OpenSSL refuses such an exponent, plain BigInt arithmetic gives the same values five times slower.
 */
import { constants, createPublicKey, type KeyObject, publicEncrypt } from 'node:crypto';
import { base64, concat, fromBase64, fromHex, u64be, utf8 } from '../../base/bytes.ts';
import { type Digest, sha256 } from '../../base/digest.ts';
import { PROOF_LIMITS, type TimeProof } from '../../wire/proof.ts';

const N = BigInt(
  '25195908475657893494027183240048398571429282126204032027777137836043662020707595556264018525880784406918290641249515082' +
    '18929855914917618450280848912007284499268739280728777673597141834727026189637501497182469116507761337985909570009733045' +
    '97488084284017974291006424586918171951187461215151726546322822168699875491824224336372590851418654620435767984233871847' +
    '74447920739934236584823824281198163815010674810451660377306056201619676256133844143603833904414952634432190114657544454' +
    '17842402092461651572335077870774981712577246796292638635637328991215483143816789988504044536402352738195137863656439121' +
    '2010397122822120720357',
);
const BYTES = 256;
/** Squarings of one RSA operation, and the length of the last stretch, which the verifier squares by itself. */
const STEP = PROOF_LIMITS.squaringsMin;
/** Halvings that are put together from values kept while squaring; the rest, 1/64 of the squarings, is computed again. */
const KEPT_HALVINGS = 6;

/** The proof that `squarings` were done after `context` was known. Runs for seconds: call it in a worker. Undefined: stopped. */
export function proveTime(
  context: Digest,
  squarings: number,
  stopped: () => boolean,
  progress: (done: number) => void,
): TimeProof | undefined {
  const seed = seedOf(context);
  const rounds = Math.log2(squarings / STEP);
  const kept = Math.min(KEPT_HALVINGS, rounds);
  const stretch = squarings / 2 ** kept;
  const checkpoints = [seed];
  let done = 0;
  const square = (from: bigint, count: number): bigint | undefined => {
    let value = toBytes(from);
    for (let at = 0; at < count; at += STEP) {
      if (stopped()) return undefined;
      value = squareStep(value);
      done += STEP;
      if (done % (STEP * 64) === 0) progress(Math.min(done, squarings));
    }
    return name(fromBytes(value));
  };
  for (let i = 0; i < 2 ** kept; i++) {
    const next = square(checkpoints[i]!, stretch);
    if (next === undefined) return undefined;
    checkpoints.push(next);
  }
  const output = checkpoints.at(-1)!;
  const halvings: bigint[] = [];
  const factors: bigint[] = [];
  let [x, y] = [seed, output];
  for (let round = 0, left = squarings; round < rounds; round++, left /= 2) {
    const half = round < kept ? fold(checkpoints, factors) : square(x, left / 2);
    if (half === undefined) return undefined;
    const factor = factorOf(context, left, x, y, half);
    halvings.push(half);
    factors.push(factor);
    const raise = powerOf(factor);
    x = name((raise(x) * half) % N);
    y = name((raise(half) * y) % N);
  }
  return { squarings, output: encodeElement(output), halvings: halvings.map(encodeElement) };
}

/** A sentence when the proof is wrong, undefined when it holds. About 4 ms for 2^20 squarings: two exponentiations for each halving. */
export function checkTime(context: Digest, squarings: number, proof: TimeProof): string | undefined {
  if (proof.squarings !== squarings) return `${squarings} squarings are asked for, not ${proof.squarings}`;
  const rounds = Math.log2(squarings / STEP);
  if (proof.halvings.length !== rounds) return `${rounds} halvings are expected, not ${proof.halvings.length}`;
  let x = seedOf(context);
  let y = decodeElement(proof.output);
  let left = squarings;
  for (const text of proof.halvings) {
    const half = decodeElement(text);
    if (y === undefined || half === undefined) break;
    const factor = factorOf(context, left, x, y, half);
    const raise = powerOf(factor);
    x = name((raise(x) * half) % N);
    y = name((raise(half) * y) % N);
    left /= 2;
  }
  if (y === undefined || left !== STEP) return 'a value is not the name of a group element';
  return name(fromBytes(squareStep(toBytes(x)))) === y ? undefined : 'the output is not the seed squared that often';
}

/**
 * The value half-way of the current round, x_r^(2^(left/2)), from checkpoints of the original chain: x_r is a product of
 * checkpoints of the seed's chain raised to products of the factors so far, and squaring commutes with both.
 */
function fold(checkpoints: readonly bigint[], factors: readonly bigint[]): bigint {
  const parts = 2 ** factors.length;
  const stride = (checkpoints.length - 1) / parts;
  let values = Array.from({ length: parts }, (_, i) => checkpoints[i * stride + stride / 2]!);
  for (const factor of factors) {
    const half = values.length / 2;
    const raise = powerOf(factor);
    values = values.slice(0, half).map((value, i) => (raise(value) * values[i + half]!) % N);
  }
  return name(values[0]!);
}

/** A residue that nobody chose: 2304 bits of SHA-256 over the context, reduced and squared. */
function seedOf(context: Digest): bigint {
  const digest = fromHex(context.slice(7));
  const blocks = Array.from({ length: 9 }, (_, i) => sha256(concat(utf8('hm-time-v1'), digest, u64be(BigInt(i)))));
  const root = fromBytes(concat(...blocks)) % N;
  return name((root * root) % N);
}

function factorOf(context: Digest, left: number, x: bigint, y: bigint, half: bigint): bigint {
  const input = [
    utf8('hm-time-v1/factor'),
    fromHex(context.slice(7)),
    u64be(BigInt(left)),
    ...[x, y, half].map(toBytes),
  ];
  return fromBytes(sha256(concat(...input)).subarray(0, 16));
}

/** The smaller of x and -x. */
function name(value: bigint): bigint {
  return value > N - value ? N - value : value;
}

function toBytes(value: bigint): Uint8Array {
  return fromHex(value.toString(16).padStart(BYTES * 2, '0'));
}

function fromBytes(bytes: Uint8Array): bigint {
  return BigInt(`0x${bytes.toHex()}`);
}

function encodeElement(value: bigint): string {
  return base64(toBytes(value));
}

/** Only names of elements other than 1 are accepted. */
function decodeElement(text: string): bigint | undefined {
  const value = fromBytes(fromBase64(text));
  return value >= 2n && value === name(value) && value < N ? value : undefined;
}

function rsaKey(exponent: bigint): KeyObject {
  const digits = exponent.toString(16);
  const e = Buffer.from(digits.padStart(digits.length + (digits.length % 2), '0'), 'hex');
  return createPublicKey({
    key: { kty: 'RSA', n: Buffer.from(toBytes(N)).toString('base64url'), e: e.toString('base64url') },
    format: 'jwk',
  });
}

function encrypt(key: KeyObject, value: Uint8Array): Uint8Array {
  return publicEncrypt({ key, padding: constants.RSA_NO_PADDING }, value);
}

function plainPower(base: bigint, exponent: bigint): bigint {
  let result = 1n;
  let square = base % N;
  for (let rest = exponent; rest > 0n; rest >>= 1n) {
    if (rest & 1n) result = (result * square) % N;
    square = (square * square) % N;
  }
  return result;
}

/** Whether OpenSSL takes our exponents and agrees with BigInt; asked once for each thread. */
let native: { readonly step: KeyObject } | false | undefined;

function nativeSquaring(): { readonly step: KeyObject } | false {
  if (native === undefined) {
    try {
      const step = rsaKey(1n << BigInt(STEP));
      const sample = (1n << 2040n) - 12_345n;
      const factor = (1n << 127n) + 2n;
      const agrees =
        fromBytes(encrypt(step, toBytes(sample))) === plainPower(sample, 1n << BigInt(STEP)) &&
        fromBytes(encrypt(rsaKey(factor), toBytes(sample))) === plainPower(sample, factor);
      native = agrees && { step };
    } catch {
      native = false;
    }
  }
  return native;
}

/** Value to the power of 2^1024. */
function squareStep(value: Uint8Array): Uint8Array {
  const key = nativeSquaring();
  if (key) return encrypt(key.step, value);
  let result = fromBytes(value);
  for (let i = 0; i < STEP; i++) result = (result * result) % N;
  return toBytes(result);
}

/** Raising to one exponent: making the key costs a third of using it. */
function powerOf(exponent: bigint): (base: bigint) => bigint {
  if (exponent < 2n || !nativeSquaring()) return (base) => plainPower(base, exponent);
  const key = rsaKey(exponent);
  return (base) => fromBytes(encrypt(key, toBytes(base)));
}
