import { equal } from '../../../base/bytes.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { type RangeAnswer, RECONCILE_LIMITS } from '../../../wire/reconcile.ts';
import type { IdSet } from './id-set.ts';

/** Ids that one side of a comparison has and the other lacks, in their short form. */
export interface Difference {
  readonly theirs: readonly Uint8Array[];
  readonly ours: readonly Uint8Array[];
}

/** Differences that one session takes up; the next session goes on from there. */
const DIFFERENCES_MAX = 50_000;
const DIGITS = '0123456789abcdef';

/**
 * Finds what `own` and the other side's set do not share, one question for each level of ranges.
 * Ends early with what it has when the other side differs in more than 50,000 ids. Errors: those of `compare`; `peer-lied`.
 */
export async function reconcile(
  own: IdSet,
  salt: Uint8Array,
  compare: (ranges: readonly string[]) => Promise<readonly RangeAnswer[]>,
): Promise<Difference> {
  const theirs: Uint8Array[] = [];
  const ours: Uint8Array[] = [];
  const open = [''];
  while (open.length > 0 && theirs.length + ours.length < DIFFERENCES_MAX) {
    // The deepest first: few are open at a time, and a liar who always differs soon has to list what he has.
    const ranges = open.splice(-RECONCILE_LIMITS.rangesMax);
    const answers = await compare(ranges);
    if (answers.length !== ranges.length) throw new HyperMeshError('peer-lied', 'Not every range was answered.');
    for (const [index, answer] of answers.entries()) {
      const prefix = ranges[index]!;
      if (answer.kind === 'split') {
        const mine = own.fingerprints(prefix, salt);
        for (const [part, fingerprint] of answer.fingerprints.entries()) {
          if (!equal(fingerprint, mine[part]!)) open.push(prefix + DIGITS[part]);
        }
      } else {
        const listed = new Map(answer.ids.map((id) => [id.toHex(), id]));
        for (const id of own.shortIds(prefix)) if (!listed.delete(id.toHex())) ours.push(id);
        theirs.push(...listed.values());
      }
    }
  }
  return { theirs, ours };
}
