import assert from 'node:assert/strict';
import { createCipheriv, createHash, randomFillSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fromBase64, utf8 } from '../../base/bytes.ts';
import { isCoded } from '../../base/errors.ts';
import { createFalcon, FALCON, type FalconExports, instantiateFalcon } from './falcon.ts';
import { createNobleFalcon } from './falcon-noble.ts';

/** The random source of the NIST known-answer tests: AES-256 in counter mode, re-keyed after each request (SP 800-90A, no derivation). */
class NistDrbg {
  #key = Buffer.alloc(32);
  #counter = Buffer.alloc(16);

  constructor(seed: Uint8Array) {
    this.#update(seed);
  }

  bytes(length: number): Buffer {
    const blocks = Array.from({ length: Math.ceil(length / 16) }, () => this.#block());
    this.#update();
    return Buffer.concat(blocks).subarray(0, length);
  }

  #block(): Buffer {
    for (let at = 15; at >= 0; at--) {
      this.#counter[at] = (this.#counter[at]! + 1) & 0xff;
      if (this.#counter[at] !== 0) break;
    }
    return createCipheriv('aes-256-ecb', this.#key, null).setAutoPadding(false).update(this.#counter);
  }

  #update(seed?: Uint8Array): void {
    const next = Buffer.concat([this.#block(), this.#block(), this.#block()]);
    for (const [at, byte] of seed?.entries() ?? []) next[at] = next[at]! ^ byte;
    this.#key = Buffer.from(next.subarray(0, 32));
    this.#counter = Buffer.from(next.subarray(32));
  }
}

const upper = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex').toUpperCase();
const read = (exports: FalconExports, at: number, length: number) => new Uint8Array(exports.memory.buffer, at, length);

test('all 100 known answers of the NIST round-3 submission', () => {
  // The submission's file falcon1024-KAT.rsp is rebuilt, byte for byte, from seeds alone: keys, signatures and signed messages of 100
  // records. Its SHA-1 is the constant that the submitters' own test program (test_falcon.c, test_nist_KAT) compares with.
  const official = 'affdeb3aa83bf9a2039fa9c17d65fd3e3b9828e2';
  let drbg = new NistDrbg(new Uint8Array(48));
  const exports = instantiateFalcon((bytes) => bytes.set(drbg.bytes(bytes.length)));
  const [pk, sk, sm, smLength, m] = [FALCON.publicKey, FALCON.secretKey, 8192, 8, 4096].map((size) =>
    exports.malloc(size),
  );
  const seeds = new NistDrbg(Uint8Array.from({ length: 48 }, (_, index) => index));
  const file = createHash('sha1').update('# Falcon-1024\n\n');
  for (let count = 0; count < 100; count++) {
    const seed = seeds.bytes(48);
    const message = seeds.bytes(33 * (count + 1));
    drbg = new NistDrbg(seed);
    assert.equal(exports.PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_keypair(pk!, sk!), 0);
    read(exports, m!, message.length).set(message);
    assert.equal(exports.PQCLEAN_FALCON1024_CLEAN_crypto_sign(sm!, smLength!, m!, message.length, sk!), 0);
    const length = new DataView(exports.memory.buffer).getUint32(smLength!, true);
    file.update(`count = ${count}\nseed = ${upper(seed)}\nmlen = ${message.length}\nmsg = ${upper(message)}\n`);
    file.update(
      `pk = ${upper(read(exports, pk!, FALCON.publicKey))}\nsk = ${upper(read(exports, sk!, FALCON.secretKey))}\n`,
    );
    file.update(`smlen = ${length}\nsm = ${upper(read(exports, sm!, length))}\n\n`);
  }
  assert.equal(file.digest('hex'), official);
});

test('both implementations accept what the other makes, with each other’s keys', () => {
  const wasm = createFalcon();
  const noble = createNobleFalcon();
  const message = utf8('cross-checked');
  for (const [maker, checker] of [
    [wasm, noble],
    [noble, wasm],
  ] as const) {
    const { publicKey, secretKey } = maker.generate();
    assert.equal(publicKey.length, FALCON.publicKey);
    for (const signer of [maker, checker]) {
      const signature = signer.sign(message, secretKey);
      assert.equal(signature.length, FALCON.signature);
      assert.ok(maker.verify(signature, message, publicKey));
      assert.ok(checker.verify(signature, message, publicKey));
      assert.ok(!checker.verify(signature, utf8('cross-checkeD'), publicKey));
    }
  }
});

test('verify() refuses every flipped bit it is shown, and every other length', () => {
  const wasm = createFalcon();
  const { publicKey, secretKey } = wasm.generate();
  const message = utf8('one signature, one form');
  const signature = wasm.sign(message, secretKey);
  const flipped = (bytes: Uint8Array, bit: number) => {
    const copy = bytes.slice();
    copy[bit >> 3]! ^= 1 << (bit & 7);
    return copy;
  };
  for (let bit = 0; bit < signature.length * 8; bit += 7) {
    assert.ok(!wasm.verify(flipped(signature, bit), message, publicKey), `bit ${bit} of the signature`);
  }
  for (let bit = 0; bit < message.length * 8; bit++)
    assert.ok(!wasm.verify(signature, flipped(message, bit), publicKey));
  for (let bit = 0; bit < publicKey.length * 8; bit += 101) {
    assert.ok(!wasm.verify(signature, message, flipped(publicKey, bit)), `bit ${bit} of the key`);
  }
  for (const length of [0, 1, 41, 1279, 1281]) {
    const other = new Uint8Array(length);
    other.set(signature.subarray(0, length));
    assert.ok(!wasm.verify(other, message, publicKey));
  }
  assert.ok(!wasm.verify(signature, message, publicKey.subarray(1)));
});

test('verify() refuses the zero-stripped form of a good signature, which the module behind it accepts', () => {
  const wasm = createFalcon();
  const noble = createNobleFalcon();
  const { publicKey, secretKey } = wasm.generate();
  const message = utf8('malleable');
  let stripped: Uint8Array;
  do {
    const signature = wasm.sign(message, secretKey);
    stripped = signature.subarray(0, signature.findLastIndex((byte) => byte !== 0) + 1);
  } while (stripped.length === FALCON.signature);
  assert.ok(!wasm.verify(stripped, message, publicKey));
  assert.ok(!noble.verify(stripped, message, publicKey));
});

test('sign() refuses bytes that are not a secret key', () => {
  for (const secretKey of [new Uint8Array(FALCON.secretKey), new Uint8Array(3)]) {
    assert.throws(
      () => createFalcon().sign(utf8('x'), secretKey),
      (error) => isCoded(error, 'key-invalid'),
    );
  }
});

test('generate() and sign() leave nothing in the memory that they used', () => {
  const used = new Set<ArrayBufferLike>();
  const falcon = createFalcon((bytes) => {
    used.add(bytes.buffer);
    randomFillSync(bytes);
  });
  const { secretKey } = falcon.generate();
  for (const length of [0, 64, 1_000_000]) falcon.sign(new Uint8Array(length).fill(7), secretKey);
  const fresh = new Uint8Array(instantiateFalcon(() => {}).memory.buffer);
  assert.equal(used.size, 4);
  for (const buffer of used) {
    const left = new Uint8Array(buffer).findIndex((byte, at) => byte !== 0 && byte !== fresh[at]);
    assert.equal(left, -1, `byte ${left} is left`);
  }
});

interface Vector {
  readonly name: string;
  readonly publicKey: string;
  readonly message: string;
  readonly signature: string;
}

function vectors(kind: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(readFileSync(new URL(`../../../test/vectors/falcon/${kind}.json`, import.meta.url), 'utf8'));
}

test('the vectors hold for both implementations', () => {
  for (const provider of [createFalcon(), createNobleFalcon()]) {
    for (const kind of ['valid', 'invalid'] as const) {
      for (const { name, publicKey, message, signature } of vectors(kind)) {
        const verdict = provider.verify(fromBase64(signature), fromBase64(message), fromBase64(publicKey));
        assert.equal(verdict, kind === 'valid', name);
      }
    }
  }
});
