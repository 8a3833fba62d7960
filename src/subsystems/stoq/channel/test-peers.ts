import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../../base/errors.ts';
import type { NodeSecrets } from '../../../testing/certified-network.ts';

export function refused(promise: Promise<unknown>, ...codes: ErrorCode[]): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), `expected ${codes.join(' or ')}, but got ${error}`);
    return true;
  });
}

/** Waits until something holds, for at most 10 seconds. */
export async function settled(holds: () => boolean): Promise<void> {
  for (let left = 1_000; left > 0 && !holds(); left--) await sleep(10);
  assert.ok(holds(), 'it did not come to hold within 10 seconds');
}

/** What a child process is told: who it is, or what it should fetch. */
export type Order =
  | { readonly secrets: NodeSecrets; readonly networkId: Digest }
  | { readonly address: string; readonly expect: string; readonly length: number };

/** A blob that every child process serves, as long as anybody asks. */
export const ENDLESS: Digest = `sha256:${'e'.repeat(64)}`;
