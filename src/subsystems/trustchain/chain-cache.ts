import { LRUCache } from 'lru-cache';
import type { ValidPath } from './path.ts';

/** Chains that were validated before, by the hash of the chain, the anchor and the role. Safe to share between verifications. */
export class ChainCache {
  readonly #paths: LRUCache<string, ValidPath>;

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

  clear(): void {
    this.#paths.clear();
  }
}
