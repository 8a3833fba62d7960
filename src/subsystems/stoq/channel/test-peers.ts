import assert from 'node:assert/strict';
import type { Digest } from '../../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../../base/errors.ts';
import type { NodeSecrets } from '../../../testing/certified-network.ts';
import { until } from '../../../testing/until.ts';

export function refused(promise: Promise<unknown>, ...codes: ErrorCode[]): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), `expected ${codes.join(' or ')}, but got ${error}`);
    return true;
  });
}

/** Waits until something holds. */
export function settled(holds: () => boolean): Promise<void> {
  return until(String(holds), holds, { everyMs: 10 });
}

/** What a child process is told: who it is, or what it should fetch. */
export type Order =
  | { readonly secrets: NodeSecrets; readonly networkId: Digest }
  | { readonly address: string; readonly expect: string; readonly length: number };

/** A blob that every child process serves, as long as anybody asks. */
export const ENDLESS: Digest = `sha256:${'e'.repeat(64)}`;
