/**
 * The time proof: the verifiable delay function of Wesolowski (2019, eprint 2018/623), docs/protocol/proofs.md, "Time".
 *
 * y = x^(2^T) in the group of rsa-group.ts. The prover shows q = x^floor(2^T / l) for a prime l that hashing x, y and T gives (section 4;
 * Fiat-Shamir, section 7); the verifier checks q^l x^(2^T mod l) = y: two short exponentiations however large T is. To prove another y is
 * to find an l-th root of an element that was chosen before l was known, which is assumed to be infeasible (adaptive root assumption;
 * Boneh, Bunz and Fisch, eprint 2018/712). What that needs is kept here: the factors of N are unknown, v and -v are one element, every
 * element has one name, T and the context are hashed with x and y, and l is one of the 2^256 primes below 2^264, so that nobody can
 * prepare a y whose distance has roots for many of them in advance.
 */
import { hash } from 'node:crypto';
import { concat, fromHex, u64be, utf8 } from '../../base/bytes.ts';
import { type Digest, sha256 } from '../../base/digest.ts';
import type { TimeProof } from '../../wire/proof.ts';
import {
  decodeElement,
  encodeElement,
  fromBytes,
  isPrime,
  N,
  name,
  plainPower,
  power,
  STEP,
  squareStep,
  toBytes,
} from './rsa-group.ts';

const PRIME_BYTES = 33;
/** Squarings that take as long as the two exponentiations by numbers below l which each kept value costs. */
const KEPT_COST = 2 ** 9;

/** The proof that `squarings` were done after `context` was known. Runs for seconds: call it in a worker. Undefined: stopped. */
export function proveTime(
  context: Digest,
  squarings: number,
  stopped: () => boolean,
  progress: (done: number) => void,
): TimeProof | undefined {
  const seed = seedOf(context);
  let done = 0;
  const chain = squareOften(seed, squarings, () => {
    if (done > 0 && done % (STEP * 64) === 0) progress(done);
    done += STEP;
    return !stopped();
  });
  if (chain === undefined) return undefined;
  const output = chain.values.at(-1)!;
  let counter = 0;
  let prime = challengeOf(context, squarings, seed, output, counter);
  while (!isPrime(prime)) prime = challengeOf(context, squarings, seed, output, ++counter);
  const quotient = raiseToQuotient(chain, prime, () => !stopped());
  if (quotient === undefined) return undefined;
  return { squarings, output: encodeElement(output), counter, quotient: encodeElement(quotient) };
}

/** A sentence when the proof is wrong, undefined when it holds. About a millisecond, however many squarings there were. */
export function checkTime(context: Digest, squarings: number, proof: TimeProof): string | undefined {
  if (proof.squarings !== squarings) return `${squarings} squarings are asked for, not ${proof.squarings}`;
  const output = decodeElement(proof.output);
  const quotient = decodeElement(proof.quotient);
  if (output === undefined || quotient === undefined) return 'a value is not the name of a group element';
  const seed = seedOf(context);
  const prime = challengeOf(context, squarings, seed, output, proof.counter);
  if (!isPrime(prime)) return 'the challenge that the counter names is not a prime';
  const rest = plainPower(2n, BigInt(squarings), prime);
  const claimed = name((power(quotient, prime) * power(seed, rest)) % N);
  return claimed === output ? undefined : 'the output is not the seed squared that often';
}

/** What squaring leaves behind: the values after 0, 1, ... `stretch`es of squarings, the last one being the end. */
interface Chain {
  readonly values: readonly bigint[];
  readonly stretch: number;
}

function squareOften(from: bigint, squarings: number, proceed: () => boolean): Chain | undefined {
  const stretch = squarings / 2 ** Math.floor(Math.log2(squarings / KEPT_COST) / 2);
  const values = [from];
  let value = toBytes(from);
  for (let done = STEP; done <= squarings; done += STEP) {
    if (!proceed()) return undefined;
    value = squareStep(value);
    if (done % stretch === 0) values.push(name(fromBytes(value)));
  }
  return { values, stretch };
}

/**
 * v^floor(2^T / l), where v is the first value of the chain and T its squarings. Long division by l in base B = 2^stretch has, for the
 * kept value v_j = v^(B^j), the digit floor(B r_j / l) with r_j = B^(n-1-j) mod l. With B = Q l + R that digit is Q r_j + floor(R r_j / l):
 * two short exponents for each value, and Q once for the product of all v_j^(r_j). Q is such a quotient itself, of a shorter chain.
 */
function raiseToQuotient(chain: Chain, prime: bigint, proceed: () => boolean): bigint | undefined {
  const { values, stretch } = chain;
  const rest = plainPower(2n, BigInt(stretch), prime);
  let digit = 1n;
  let together = 1n;
  let alone = 1n;
  for (const value of values.slice(0, -1).reverse()) {
    if (!proceed()) return undefined;
    together = (together * power(value, digit)) % N;
    alone = (alone * power(value, (digit * rest) / prime)) % N;
    digit = (digit * rest) % prime;
  }
  let long: bigint | undefined;
  if (stretch === STEP) {
    long = power(together, (1n << BigInt(STEP)) / prime);
  } else {
    const shorter = squareOften(together, stretch, proceed);
    long = shorter && raiseToQuotient(shorter, prime, proceed);
  }
  return long === undefined ? undefined : name((long * alone) % N);
}

/** A residue that nobody chose: 2304 bits of SHA-256 over the context, reduced and squared. */
function seedOf(context: Digest): bigint {
  const digest = fromHex(context.slice(7));
  const blocks = Array.from({ length: 9 }, (_, i) => sha256(concat(utf8('hm-time-v2'), digest, u64be(BigInt(i)))));
  const root = fromBytes(concat(...blocks)) % N;
  return name((root * root) % N);
}

/** An odd number below 2^264: the challenge when it is prime. The prover counts until it is; whose count it is does not matter. */
function challengeOf(context: Digest, squarings: number, x: bigint, y: bigint, counter: number): bigint {
  const input = concat(
    utf8('hm-time-v2/challenge'),
    fromHex(context.slice(7)),
    ...[squarings, counter].map((count) => u64be(BigInt(count))),
    toBytes(x),
    toBytes(y),
  );
  return fromBytes(hash('sha512', input, 'buffer').subarray(0, PRIME_BYTES)) | 1n;
}
