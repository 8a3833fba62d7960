import { LRUCache } from 'lru-cache';
import { fromBase64 } from '../../base/bytes.ts';
import type { Certificate, DoubleSigned, RevocationList } from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import type { ValidPath } from './path.ts';

/** Characters of base64 whose decoded form is kept. */
const DECODED_CHARS_MAX = 4 * 2 ** 20;

/**
 * Chains that were validated before, by the hash of the chain, the anchor and the role; and what chains share: authorities and their
 * lists. Safe to share between verifications.
 */
export class ChainCache {
  readonly #paths: LRUCache<string, ValidPath>;
  readonly #certificates = decodedCache<Certificate>();
  readonly #lists = decodedCache<RevocationList>();
  /** Signatures that hold, with the keys by which they do. */
  readonly #genuine = new WeakMap<DoubleSigned, WeakSet<PublicKeys>>();

  constructor(options: { readonly chainsMax: number }) {
    this.#paths = new LRUCache({ max: options.chainsMax });
  }

  get(key: string, atMs: number): ValidPath | undefined {
    const path = this.#paths.get(key);
    return path !== undefined && atMs >= path.fromMs && atMs <= path.untilMs ? path : undefined;
  }

  set(key: string, path: ValidPath): void {
    if (path.unrevoked) this.#paths.set(key, path);
  }

  /** The certificate in that base64, decoded once. */
  certificate(der: string, decode: (der: Uint8Array) => Certificate): Certificate {
    return once(this.#certificates, der, decode);
  }

  /** The list in that base64, decoded once. */
  revocationList(der: string, decode: (der: Uint8Array) => RevocationList): RevocationList {
    return once(this.#lists, der, decode);
  }

  /** Whether both signatures hold; a pair for which they do is not checked again. */
  genuine(signed: DoubleSigned, keys: PublicKeys, verifies: () => boolean): boolean {
    const by = this.#genuine.get(signed) ?? new WeakSet();
    if (by.has(keys)) return true;
    if (!verifies()) return false;
    this.#genuine.set(signed, by.add(keys));
    return true;
  }

  clear(): void {
    this.#paths.clear();
    this.#certificates.clear();
    this.#lists.clear();
  }
}

function decodedCache<T extends object>(): LRUCache<string, T> {
  return new LRUCache({ maxSize: DECODED_CHARS_MAX, sizeCalculation: (_value, der) => der.length + 1 });
}

function once<T extends object>(cache: LRUCache<string, T>, der: string, decode: (der: Uint8Array) => T): T {
  const known = cache.get(der);
  if (known !== undefined) return known;
  const decoded = decode(fromBase64(der));
  cache.set(der, decoded);
  return decoded;
}
