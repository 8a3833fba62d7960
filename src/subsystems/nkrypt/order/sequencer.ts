import { HyperMeshError } from '../../../base/errors.ts';
import { ENTRY_LIMITS } from '../../../wire/entry.ts';

export const SEQUENCER_LIMITS = {
  entryBytesMax: ENTRY_LIMITS.bytesMax,
  /** Of one {@link Sequencer.read}. */
  entriesMax: 256,
  readBytesMax: 2 * 2 ** 20,
} as const;

export interface SequencerOptions {
  readonly signal?: AbortSignal | undefined;
}

/**
 * An engine that puts entries into one order, for all who look the same. It is believed nothing: what it shows is only a proposal, which the
 * committee certifies (log.ts). It may crash, stall and lose its network; what it acknowledged it must not lose.
 *
 * Positions begin at 1 and have no gaps. Entries are bytes that mean nothing to the engine; one and the same entry is in the order once.
 * Errors of all: `sequencer-unreachable` when the engine does not answer now (an append may have happened all the same, and is safe to
 * repeat), `cancelled`, `storage-*`.
 */
export interface Sequencer extends AsyncDisposable {
  /** Puts the entry at the end, durably, and says where; one that is in the order already stays where it is. Errors: `limit-exceeded`. */
  append(entry: Uint8Array, options?: SequencerOptions): Promise<number>;
  /** The entries that follow position `after`: in order, as many as fit the limits, at least one if there is any. None where the next one was dropped. */
  read(after: number, options?: SequencerOptions): Promise<readonly Uint8Array[]>;
  /**
   * Says the length whenever it is known to be above `after` and above what was said before; ends when `signal` does. Goes on, without an error,
   * as long as the engine does not answer. Errors: `order-stopped` when it says nonsense, or has fewer entries than it had.
   */
  watch(after: number, signal: AbortSignal): AsyncIterable<number>;
  /** Nobody needs the entries up to that position any more: they may be dropped, but for the last one. The others stay where they are. */
  forget(upTo: number, options?: SequencerOptions): Promise<void>;
}

/** Errors: `limit-exceeded`. */
export function checkEntry(entry: Uint8Array): void {
  if (entry.length > 0 && entry.length <= SEQUENCER_LIMITS.entryBytesMax) return;
  throw new HyperMeshError(
    'limit-exceeded',
    `An entry has 1 to ${SEQUENCER_LIMITS.entryBytesMax} bytes, not ${entry.length}.`,
  );
}

/** The first of them, up to what one read may return. */
export function fitting(entries: Iterable<Uint8Array>): readonly Uint8Array[] {
  const some: Uint8Array[] = [];
  let bytes = 0;
  for (const entry of entries) {
    bytes += entry.length;
    if (some.length === SEQUENCER_LIMITS.entriesMax) break;
    if (some.length > 0 && bytes > SEQUENCER_LIMITS.readBytesMax) break;
    some.push(entry);
  }
  return some;
}

/** What helps where an engine contradicts itself or what was certified. */
export const ELSEWHERE =
  'Let the order go on with another engine; where the move does not happen, add --recover: hypermesh network sequencer --to-home';

/** An engine that was set back: what it orders next would be at positions that are taken. */
export function shorter(length: number, than: number): HyperMeshError {
  return new HyperMeshError('order-stopped', `The engine has ${length} entries of the ${than} that it had.`, {
    hint: `It was restored from an old backup, or somebody deleted what it kept. ${ELSEWHERE}`,
  });
}

export function sequencerUnreachable(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('sequencer-unreachable', `The engine that orders entries does not answer: ${why}.`, {
    hint: 'Nothing that was acknowledged is lost; the same can be tried again when most of its machines run.',
    cause,
  });
}
