import assert from 'node:assert/strict';
import { checkPrimeSync, createHash } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, fromBase64, fromHex, u64be, utf8 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import type { TimeProof } from '../../wire/proof.ts';
import { encodeElement, fromBytes, isPrime, N, name, plainPower, power, squareStep, toBytes } from './rsa-group.ts';
import { checkTime, proveTime } from './time.ts';

const context = digestOf(Uint8Array.of(1));
const prove = (squarings: number, of: Digest = context) =>
  proveTime(
    of,
    squarings,
    () => false,
    () => undefined,
  )!;

test('proveTime() is accepted for every number of squarings, and its challenge is found soon', () => {
  for (const power of [10, 11, 12, 13, 15, 17]) {
    const proof = prove(2 ** power);
    assert.equal(checkTime(context, 2 ** power, proof), undefined, `2^${power}`);
    assert.ok(proof.counter < 2_000);
  }
});

/** What docs/protocol/proofs.md says, in plain arithmetic. */
const SQUARINGS = 2 ** 10;
const input = fromHex(context.slice(7));
const seed = (() => {
  const block = (j: number) =>
    createHash('sha256')
      .update(concat(utf8('hm-time-v2'), input, u64be(BigInt(j))))
      .digest();
  const root = fromBytes(concat(...Array.from({ length: 9 }, (_, j) => block(j)))) % N;
  return name((root * root) % N);
})();
const output = name(plainPower(seed, 1n << BigInt(SQUARINGS), N));
function challenge(counter: number, y = output): bigint {
  const counts = [SQUARINGS, counter].map((count) => u64be(BigInt(count)));
  const bytes = concat(utf8('hm-time-v2/challenge'), input, ...counts, toBytes(seed), toBytes(y));
  return fromBytes(createHash('sha512').update(bytes).digest().subarray(0, 33)) | 1n;
}
const quotientBy = (divisor: bigint) => name(plainPower(seed, (1n << BigInt(SQUARINGS)) / divisor, N));
const claim = (y: bigint, counter: number, quotient: bigint): TimeProof => ({
  ...{ squarings: SQUARINGS, output: encodeElement(y), counter, quotient: encodeElement(quotient) },
});
const isFermatPrime = (value: bigint) => plainPower(2n, value - 1n, value) === 1n;
const counters = Array.from({ length: 400 }, (_, counter) => counter);
const primes = counters.filter((counter) => isFermatPrime(challenge(counter)));

test('proveTime() gives what the specification says, and any counter of a prime serves', () => {
  assert.deepEqual(prove(SQUARINGS), claim(output, primes[0]!, quotientBy(challenge(primes[0]!))));
  assert.equal(checkTime(context, SQUARINGS, claim(output, primes[1]!, quotientBy(challenge(primes[1]!)))), undefined);
});

test('checkTime() refuses a challenge that is not a prime, or not that of the counter, the output and the squarings', () => {
  const composite = counters.find((counter) => !primes.includes(counter))!;
  const [first, second] = primes as [number, number];
  assert.match(
    checkTime(context, SQUARINGS, claim(output, composite, quotientBy(challenge(composite))))!,
    /not a prime/,
  );
  assert.ok(checkTime(context, SQUARINGS, claim(output, first, quotientBy(challenge(second)))));
  assert.ok(checkTime(context, SQUARINGS, claim(output, first, quotientBy(challenge(first, seed)))));
  assert.ok(checkTime(context, SQUARINGS, claim(output, first, quotientBy(65_537n))));
  assert.ok(checkTime(context, SQUARINGS * 2, { ...prove(SQUARINGS), squarings: SQUARINGS * 2 }));
});

test('checkTime() refuses a false output whose distance from the true one has a known root for another challenge', () => {
  const factor = 12_345n;
  for (const counter of primes.slice(0, 2)) {
    const prime = challenge(counter);
    const shifted = name((output * plainPower(factor, prime, N)) % N);
    const quotient = name((quotientBy(prime) * factor) % N);
    // The equation holds for the prime that was hashed from the true output; the false one has another.
    const rest = plainPower(2n, BigInt(SQUARINGS), prime);
    assert.equal(name((power(quotient, prime) * power(seed, rest)) % N), shifted);
    for (const other of [counter, ...counters.slice(0, 200)]) {
      assert.ok(checkTime(context, SQUARINGS, claim(shifted, other, quotient)));
    }
  }
});

test('checkTime() refuses every altered field, and values that are not names of elements', () => {
  const squarings = 2 ** 13;
  const proof = prove(squarings);
  const refused = (changed: TimeProof, count = squarings, of = context) =>
    assert.notEqual(checkTime(of, count, changed), undefined);
  refused({ ...proof, output: prove(2 ** 14).output });
  refused({ ...proof, output: proof.quotient, quotient: proof.output });
  refused({ ...proof, squarings: squarings * 2 });
  refused({ ...proof, squarings: squarings / 2 });
  for (const count of [squarings * 2, squarings / 2]) {
    refused(proof, count);
    refused({ ...proof, squarings: count }, count);
  }
  refused({ ...proof, counter: proof.counter + 1 });
  refused(proof, squarings, digestOf(Uint8Array.of(2)));
  const all = (1n << 2048n) - 1n;
  for (const field of ['output', 'quotient'] as const) {
    const value = fromBytes(fromBase64(proof[field]));
    for (const other of [0n, 1n, 2n, N - value, N - 1n, N, N + 1n, all, ...(value + N <= all ? [value + N] : [])]) {
      refused({ ...proof, [field]: encodeElement(other) });
    }
  }
  fc.assert(
    fc.property(fc.constantFrom('output', 'quotient'), fc.nat(2047), (field, bit) => {
      const bytes = fromBase64(proof[field as 'output']);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      refused({ ...proof, [field]: bytes.toBase64() });
    }),
    { numRuns: 60 },
  );
});

test('isPrime() agrees with OpenSSL, and is not deceived by numbers that deceive simpler tests', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 1n << 128n, max: 1n << 264n }), (value) => {
      const odd = value | 1n;
      assert.equal(isPrime(odd), checkPrimeSync(odd));
    }),
    { numRuns: 200 },
  );
  for (let found = 0, value = (1n << 263n) + 1n; found < 3; value += 2n) {
    if (!checkPrimeSync(value)) continue;
    assert.ok(isPrime(value));
    assert.ok(!isPrime(value * value));
    found++;
  }
  // Chernick's Carmichael numbers (6k+1)(12k+1)(18k+1): every base that shares no factor passes Fermat's test.
  let carmichael = 0;
  for (let k = 1n << 45n; carmichael < 3; k++) {
    const factors = [6n * k + 1n, 12n * k + 1n, 18n * k + 1n] as const;
    if (!factors.every((factor) => checkPrimeSync(factor))) continue;
    const product = factors[0] * factors[1] * factors[2];
    assert.equal(plainPower(2n, product - 1n, product), 1n);
    assert.ok(!isPrime(product));
    carmichael++;
  }
  for (const small of [0n, 1n, 2n, 3n, 65_537n]) assert.ok(!isPrime(small));
});

test('exponentiation by OpenSSL gives what BigInt arithmetic gives', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: N - 1n }), fc.bigInt({ min: 0n, max: 1n << 264n }), (base, exponent) => {
      assert.equal(power(base, exponent), plainPower(base, exponent, N));
    }),
    { numRuns: 20 },
  );
  assert.equal(fromBytes(squareStep(toBytes(seed))), plainPower(seed, 1n << 1024n, N));
});

test('proveTime() stops when nobody waits', () => {
  // While squaring, and while making the quotient after the 64 steps of 2^16 squarings.
  for (const after of [3, 66, 80]) {
    let asked = 0;
    const stopped = () => ++asked > after;
    assert.equal(
      proveTime(context, 2 ** 16, stopped, () => undefined),
      undefined,
    );
    assert.equal(asked, after + 1);
  }
});
