/**
 * The group of the time proof: units modulo RSA-2048, with v and N - v taken as one element and the smaller one as its name. RSA-2048
 * is the modulus of the RSA Factoring Challenge, whose factors nobody is known to have. Without the identification, N - 1 would be an
 * element of order two that everybody knows, and a false proof could be made with it.
 *
 * Exponentiation is done by OpenSSL, as an RSA operation without padding. Where OpenSSL refuses such an exponent, plain BigInt arithmetic
 * gives the same values five times slower.
 */
import { constants, createPublicKey, type KeyObject, publicEncrypt, randomBytes } from 'node:crypto';
import { base64, fromBase64, fromHex } from '../../base/bytes.ts';
import { PROOF_LIMITS } from '../../wire/proof-limits.ts';

export const N = BigInt(
  '25195908475657893494027183240048398571429282126204032027777137836043662020707595556264018525880784406918290641249515082' +
    '18929855914917618450280848912007284499268739280728777673597141834727026189637501497182469116507761337985909570009733045' +
    '97488084284017974291006424586918171951187461215151726546322822168699875491824224336372590851418654620435767984233871847' +
    '74447920739934236584823824281198163815010674810451660377306056201619676256133844143603833904414952634432190114657544454' +
    '17842402092461651572335077870774981712577246796292638635637328991215483143816789988504044536402352738195137863656439121' +
    '2010397122822120720357',
);
const BYTES = 256;
/** Below it, nothing is called a prime. */
const SMALL = 1n << 128n;
/** Squarings of one RSA operation. */
export const STEP = PROOF_LIMITS.squaringsMin;

/** The smaller of v and -v. */
export function name(value: bigint): bigint {
  return value > N - value ? N - value : value;
}

export function toBytes(value: bigint, length = BYTES): Uint8Array {
  return fromHex(value.toString(16).padStart(length * 2, '0'));
}

/** As few bytes as hold it. */
function unsigned(value: bigint): Uint8Array {
  return toBytes(value, Math.ceil(value.toString(16).length / 2));
}

export function fromBytes(bytes: Uint8Array): bigint {
  return BigInt(`0x${bytes.toHex()}`);
}

export function encodeElement(value: bigint): string {
  return base64(toBytes(value));
}

/** Only names of elements other than 1 are accepted: from 2 to (N - 1) / 2. */
export function decodeElement(text: string): bigint | undefined {
  const value = fromBytes(fromBase64(text));
  return value >= 2n && value < N && value === name(value) ? value : undefined;
}

/** base^exponent mod N, for exponents below N. */
export function power(base: bigint, exponent: bigint): bigint {
  return powersOf(exponent, N)(base);
}

/** Raises numbers below an odd modulus to one exponent below it. */
function powersOf(exponent: bigint, modulus: bigint): (base: bigint) => bigint {
  if (exponent < 2n || !nativePowers()) return (base) => plainPower(base, exponent, modulus);
  return nativePowersOf(exponent, modulus);
}

function nativePowersOf(exponent: bigint, modulus: bigint): (base: bigint) => bigint {
  const key = rsaKey(exponent, modulus);
  const bytes = unsigned(modulus).length;
  return (base) => fromBytes(encrypt(key, toBytes(base, bytes)));
}

const ROUNDS = 16;

/**
 * Whether an odd number above 2^128 is a prime, by Miller and Rabin with random bases. Of the 264-bit numbers that a hash gives and this
 * accepts, at most about one in 2^100 is none (Damgard, Landrock and Pomerance 1993), and that one would serve a forger only if all its
 * factors were small. OpenSSL's own test does 64 rounds, never fewer, and takes three times as long.
 */
export function isPrime(candidate: bigint): boolean {
  if (candidate < SMALL) return false;
  const most = candidate - 1n;
  let odd = most;
  let twos = 0;
  for (; (odd & 1n) === 0n; twos++) odd >>= 1n;
  const raise = powersOf(odd, candidate);
  const witnesses = (base: bigint): boolean => {
    let value = raise(base);
    if (value === 1n) return true;
    for (let square = 0; square < twos; square++) {
      if (value === most) return true;
      value = (value * value) % candidate;
    }
    return false;
  };
  // Bases from 2 to the candidate less 2.
  return Array.from({ length: ROUNDS }).every(() => witnesses(2n + (fromBytes(randomBytes(40)) % (candidate - 3n))));
}

/** base^exponent mod modulus in BigInt arithmetic, with quick squarings while the result is small. */
export function plainPower(base: bigint, exponent: bigint, modulus: bigint): bigint {
  let result = 1n;
  for (const bit of exponent.toString(2)) {
    result = (result * result) % modulus;
    if (bit === '1') result = (result * base) % modulus;
  }
  return result;
}

let step: KeyObject | undefined;

/** value^(2^1024), as bytes: nothing is converted between one step and the next. */
export function squareStep(value: Uint8Array): Uint8Array {
  if (!nativePowers()) return toBytes(plainPower(fromBytes(value), 1n << BigInt(STEP), N));
  step ??= rsaKey(1n << BigInt(STEP), N);
  return encrypt(step, value);
}

function rsaKey(exponent: bigint, modulus: bigint): KeyObject {
  const member = (value: bigint) => Buffer.from(unsigned(value)).toString('base64url');
  return createPublicKey({ key: { kty: 'RSA', n: member(modulus), e: member(exponent) }, format: 'jwk' });
}

function encrypt(key: KeyObject, value: Uint8Array): Uint8Array {
  return publicEncrypt({ key, padding: constants.RSA_NO_PADDING }, value);
}

/** Whether OpenSSL takes long and even exponents and a short modulus, and agrees with BigInt; asked once for each thread. */
let native: boolean | undefined;

function nativePowers(): boolean {
  if (native === undefined) {
    const exponent = (1n << 262n) + 2n;
    const base = (1n << 260n) - 12_345n;
    try {
      native = [N, (1n << 263n) + 9n].every(
        (modulus) => nativePowersOf(exponent, modulus)(base) === plainPower(base, exponent, modulus),
      );
    } catch {
      native = false;
    }
  }
  return native;
}
