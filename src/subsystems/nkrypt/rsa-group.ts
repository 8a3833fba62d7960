/**
 * The group of the time proof: units modulo RSA-2048, with v and N - v taken as one element and the smaller one as its name. RSA-2048
 * is the modulus of the RSA Factoring Challenge, whose factors nobody is known to have. Without the identification, N - 1 would be an
 * element of order two that everybody knows, and a false proof could be made with it.
 *
 * Exponentiation is done by OpenSSL, as an RSA operation without padding. Where OpenSSL refuses such an exponent, plain BigInt arithmetic
 * gives the same values five times slower.
 */
import { constants, createPublicKey, type KeyObject, publicEncrypt } from 'node:crypto';
import { base64, fromBase64, fromHex } from '../../base/bytes.ts';
import { PROOF_LIMITS } from '../../wire/proof.ts';

export const N = BigInt(
  '25195908475657893494027183240048398571429282126204032027777137836043662020707595556264018525880784406918290641249515082' +
    '18929855914917618450280848912007284499268739280728777673597141834727026189637501497182469116507761337985909570009733045' +
    '97488084284017974291006424586918171951187461215151726546322822168699875491824224336372590851418654620435767984233871847' +
    '74447920739934236584823824281198163815010674810451660377306056201619676256133844143603833904414952634432190114657544454' +
    '17842402092461651572335077870774981712577246796292638635637328991215483143816789988504044536402352738195137863656439121' +
    '2010397122822120720357',
);
const BYTES = 256;
/** Squarings of one RSA operation. */
export const STEP = PROOF_LIMITS.squaringsMin;

/** The smaller of v and -v. */
export function name(value: bigint): bigint {
  return value > N - value ? N - value : value;
}

export function toBytes(value: bigint): Uint8Array {
  return fromHex(value.toString(16).padStart(BYTES * 2, '0'));
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
  if (exponent < 2n || !nativePowers()) return plainPower(base, exponent, N);
  return fromBytes(encrypt(rsaKey(exponent), toBytes(base)));
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
  step ??= rsaKey(1n << BigInt(STEP));
  return encrypt(step, value);
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

/** Whether OpenSSL takes exponents that are long and even, and agrees with BigInt; asked once for each thread. */
let native: boolean | undefined;

function nativePowers(): boolean {
  if (native === undefined) {
    const sample = (1n << 2040n) - 12_345n;
    const exponent = (1n << 264n) + 2n;
    try {
      native = fromBytes(encrypt(rsaKey(exponent), toBytes(sample))) === plainPower(sample, exponent, N);
    } catch {
      native = false;
    }
  }
  return native;
}
