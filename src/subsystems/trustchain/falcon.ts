import { createHash, randomFillSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { HyperMeshError } from '../../base/errors.ts';

/** FALCON-1024 of NIST round 3, signatures padded to a fixed length. Sizes in bytes. */
export const FALCON = { publicKey: 1793, secretKey: 2305, signature: 1280 } as const;

const PUBLIC_KEY_HEADER = 0x0a;
const SECRET_KEY_HEADER = 0x5a;
const SIGNATURE_HEADER = 0x3a;

export interface FalconKeyPair {
  readonly publicKey: Uint8Array;
  readonly secretKey: Uint8Array;
}

/** One implementation of FALCON-1024 (padded). All of them make and accept the same bytes. */
export interface FalconProvider {
  generate(): FalconKeyPair;
  /** Randomised: two signatures of one message differ. Never use signature bytes as an identity. */
  sign(message: Uint8Array, secretKey: Uint8Array): Uint8Array;
  /** False for anything but the one accepted encoding of a valid signature; never throws on hostile bytes. */
  verify(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean;
}

/**
 * The verifiers of both implementations are lenient in places (a zero-stripped signature is accepted as well), which would make two
 * byte strings out of one signature. Only the full length with the right header passes here.
 */
export function isCanonicalSignature(signature: Uint8Array, publicKey: Uint8Array): boolean {
  return (
    signature.length === FALCON.signature &&
    signature[0] === SIGNATURE_HEADER &&
    publicKey.length === FALCON.publicKey &&
    publicKey[0] === PUBLIC_KEY_HEADER
  );
}

export function checkSecretKey(secretKey: Uint8Array): void {
  if (secretKey.length === FALCON.secretKey && secretKey[0] === SECRET_KEY_HEADER) return;
  throw new HyperMeshError('key-invalid', 'Expected a FALCON-1024 secret key, but got other bytes.', {
    hint: 'Restore the key store from a state export or a backup.',
  });
}

/** The reference C code of the round-3 submission ("clean": constant-time source, integer arithmetic), compiled to WebAssembly. */
const WASM_SHA256 = 'f3963751e47850955073eca745d73d57f2b33c9dcfa0e6289aaab725ca087c3d';

/** The part of the WebAssembly API that is used here; the type declarations of Node leave it out. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  compile(bytes: Uint8Array): Promise<object>;
  readonly Instance: new (
    module: object,
    imports: Readonly<Record<string, Readonly<Record<string, (...values: number[]) => void>>>>,
  ) => { readonly exports: unknown };
};

/** What the module exports, for each scheme it holds. Every call returns 0 for success. */
export interface FalconExports {
  readonly memory: { readonly buffer: ArrayBuffer };
  malloc(bytes: number): number;
  free(pointer: number): void;
  /** The top of the stack, which grows down; the heap lies above it. */
  emscripten_stack_get_current(): number;
  PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_keypair(publicKey: number, secretKey: number): number;
  PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_signature(
    signature: number,
    signatureBytes: number,
    message: number,
    messageBytes: number,
    secretKey: number,
  ): number;
  PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_verify(
    signature: number,
    signatureBytes: number,
    message: number,
    messageBytes: number,
    publicKey: number,
  ): number;
  /** The unpadded scheme of the NIST interface, for the known-answer tests. */
  PQCLEAN_FALCON1024_CLEAN_crypto_sign(
    signed: number,
    signedBytes: number,
    message: number,
    messageBytes: number,
    secretKey: number,
  ): number;
}

let compiled: object | undefined;

function compile(): object {
  compiled ??= new WebAssembly.Module(checked(readFileSync(modulePath())));
  return compiled;
}

let ready: Promise<void> | undefined;

/**
 * Compiles the module in other threads, which takes 5 to 20 ms, before the event loop needs it. Whoever checks a signature earlier compiles it in place, and
 * hears of what is wrong with it.
 */
export function falconReady(): Promise<void> {
  ready ??= readFile(modulePath())
    .then(async (bytes) => {
      compiled ??= await WebAssembly.compile(checked(bytes));
    })
    .catch(() => undefined);
  return ready;
}

function modulePath(): string {
  return createRequire(import.meta.url).resolve('pqclean/wasm/gen/pqclean.wasm');
}

/** Errors: `signature-invalid`. */
function checked(bytes: Uint8Array): Uint8Array {
  const digest = createHash('sha256').update(bytes).digest('hex');
  if (digest !== WASM_SHA256) {
    throw new HyperMeshError(
      'signature-invalid',
      `Expected the FALCON module with SHA-256 ${WASM_SHA256}, but the installed one has ${digest}.`,
      { hint: 'The installation was altered: run `npm ci` again.' },
    );
  }
  return bytes;
}

/** A fresh instance with its own memory and its own source of randomness (`random` fills the bytes it is given). */
export function instantiateFalcon(random: (bytes: Uint8Array) => void): FalconExports {
  const instance = new WebAssembly.Instance(compile(), {
    env: {
      PQCLEAN_randombytes(at, length) {
        random(new Uint8Array(exports.memory.buffer, at, length));
      },
    },
    wasi_snapshot_preview1: {
      proc_exit() {
        throw new Error('the FALCON module stopped itself');
      },
    },
  });
  const exports = instance.exports as FalconExports;
  return exports;
}

/** Bytes of stack and of heap that signing or making a key may use; they use 81 KiB and 9 KiB. */
const SCRATCH = 512 * 2 ** 10;
/** Where the variables of the module lie. */
const STATIC = 64 * 2 ** 10;

/**
 * Zeroes everything that a call may have written, `heapBytes` being what was put into the heap for it. The rest of the 21 MiB was
 * never touched: to write zeroes there would cost twice as much as to sign. The module is known by its hash, and a test looks at all
 * of the memory.
 */
export function wipe(exports: FalconExports, heapBytes: number): void {
  const top = exports.emscripten_stack_get_current();
  const memory = new Uint8Array(exports.memory.buffer);
  memory.fill(0, 0, STATIC);
  memory.fill(0, top - SCRATCH, top + heapBytes + SCRATCH);
}

/**
 * The production implementation. Verification keeps one instance; whatever touches a secret gets an instance of its own whose used
 * memory is zeroed and dropped afterwards, so that no stack or heap remnant of a key outlives the call.
 */
export function createFalcon(random: (bytes: Uint8Array) => void = (bytes) => randomFillSync(bytes)): FalconProvider {
  let verifier: { exports: FalconExports; publicKey: number; signature: number } | undefined;

  function withSecrets<T>(messageBytes: number, use: (exports: FalconExports) => T): T {
    const exports = instantiateFalcon(random);
    try {
      return use(exports);
    } finally {
      wipe(exports, messageBytes);
    }
  }

  return {
    generate: () =>
      withSecrets(0, (exports) => {
        const publicKey = exports.malloc(FALCON.publicKey);
        const secretKey = exports.malloc(FALCON.secretKey);
        succeeded(exports.PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_keypair(publicKey, secretKey));
        return {
          publicKey: read(exports, publicKey, FALCON.publicKey),
          secretKey: read(exports, secretKey, FALCON.secretKey),
        };
      }),

    sign(message, secretKey) {
      checkSecretKey(secretKey);
      return withSecrets(message.length, (exports) => {
        const length = exports.malloc(8);
        const signature = exports.malloc(FALCON.signature);
        const at = write(exports, message);
        const secret = write(exports, secretKey);
        succeeded(
          exports.PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_signature(signature, length, at, message.length, secret),
        );
        return read(exports, signature, FALCON.signature);
      });
    },

    verify(signature, message, publicKey) {
      if (!isCanonicalSignature(signature, publicKey)) return false;
      if (verifier === undefined) {
        const exports = instantiateFalcon(random);
        verifier = {
          exports,
          publicKey: exports.malloc(FALCON.publicKey),
          signature: exports.malloc(FALCON.signature),
        };
      }
      const { exports } = verifier;
      const at = write(exports, message);
      try {
        const memory = new Uint8Array(exports.memory.buffer);
        memory.set(publicKey, verifier.publicKey);
        memory.set(signature, verifier.signature);
        return (
          exports.PQCLEAN_FALCONPADDED1024_CLEAN_crypto_sign_verify(
            verifier.signature,
            signature.length,
            at,
            message.length,
            verifier.publicKey,
          ) === 0
        );
      } finally {
        exports.free(at);
      }
    },
  };
}

function write(exports: FalconExports, bytes: Uint8Array): number {
  const at = exports.malloc(Math.max(1, bytes.length));
  new Uint8Array(exports.memory.buffer).set(bytes, at);
  return at;
}

function read(exports: FalconExports, at: number, length: number): Uint8Array {
  return new Uint8Array(exports.memory.buffer, at, length).slice();
}

function succeeded(status: number): void {
  if (status !== 0) throw new Error(`the FALCON module reported status ${status}`);
}

let shared: FalconProvider | undefined;

/** The verifier of this thread, made on first use. */
export function falconVerifier(): FalconProvider {
  shared ??= createFalcon();
  return shared;
}
