import { z } from 'zod';
import { base64, fromBase64, fromUtf8, utf8 } from '../../../base/bytes.ts';
import { digestHex, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { type EtcdAccess, EtcdClient } from './etcd-client.ts';
import {
  checkEntry,
  ELSEWHERE,
  fitting,
  SEQUENCER_LIMITS,
  type Sequencer,
  type SequencerOptions,
  sequencerUnreachable,
  shorter,
} from './sequencer.ts';

const WAITING_MAX = 10_000;
/** Of one transaction: etcd takes 128 operations and 1.5 MiB unless told otherwise; an entry needs two and the head one. */
const GROUP_MAX = 60;
const GROUP_BYTES_MAX = 2 ** 20;
/** Of one read, so that the largest of them fit into one answer; one alone after an answer that did not come in time, perhaps because it is that large. */
const READ_MAX = 16;
/** In the place of what was written there by hand and can be no entry, so that the order goes on: it is refused in its turn. */
const NO_ENTRY = Uint8Array.of(0);
/** A watch of a machine that was cut off says nothing for ever. */
const WATCH_MS = 10_000;

// The gateway writes 64-bit numbers as text, and leaves out what is zero, false or empty.
const int64 = z
  .string()
  .regex(/^\d{1,19}$/)
  .default('0')
  .transform(BigInt);
const pair = z.object({ key: z.base64(), value: z.base64().default(''), mod_revision: int64, version: int64 });
const header = z.object({ revision: int64 });
const range = z.object({ header, kvs: z.array(pair).default([]) });
const txn = z.object({
  header,
  succeeded: z.boolean().default(false),
  responses: z.array(z.object({ response_range: z.object({ kvs: z.array(pair).default([]) }).optional() })).default([]),
});

interface Waiting {
  readonly entry: Uint8Array;
  readonly signal: AbortSignal | undefined;
  readonly resolve: (position: number) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * The order in a cluster of etcd, under one prefix:
 *
 *   PREFIX/head               how many entries there are
 *   PREFIX/entry/POSITION     the entry; sixteen digits, so that they sort
 *   PREFIX/at/DIGEST          its position
 *   PREFIX/floor              entries up to there were dropped
 *
 * One transaction writes all three if the head is as it was read and the digest is new, so that whatever is lost, late or repeated on the way
 * an entry is there once. Appends of one node that come together share a transaction.
 */
export class EtcdSequencer implements Sequencer {
  readonly #client: EtcdClient;
  readonly #prefix: string;
  readonly #waiting: Waiting[] = [];
  readonly #closing = new AbortController();
  #working = false;
  #readMax = READ_MAX;
  #head: { readonly length: number; readonly revision: bigint } | undefined;

  /** `log`: names the order within the cluster. Errors: `config-invalid`. */
  constructor(access: EtcdAccess, log: string) {
    this.#client = new EtcdClient(access);
    this.#prefix = `hypermesh/${log}`;
  }

  append(entry: Uint8Array, { signal }: SequencerOptions = {}): Promise<number> {
    return new Promise((resolve, reject) => {
      checkEntry(entry);
      if (this.#waiting.length >= WAITING_MAX) {
        throw new HyperMeshError('quota-exceeded', `${WAITING_MAX} entries wait for etcd.`, {
          hint: 'Try again in a moment.',
        });
      }
      this.#waiting.push({ entry, signal, resolve, reject });
      if (!this.#working) void this.#work();
    });
  }

  async read(after: number, { signal }: SequencerOptions = {}): Promise<readonly Uint8Array[]> {
    const limit = this.#readMax;
    this.#readMax = 1;
    const entries = { key: this.#entryKey(after + 1), range_end: this.#key('entry0'), limit };
    // As they were at one moment.
    const answer = await this.#client.call(
      '/v3/kv/txn',
      {
        compare: [],
        success: [entries, { key: this.#key('head') }, { key: this.#key('floor') }].map((one) => ({
          request_range: one,
        })),
        failure: [],
      },
      txn,
      this.#ends(signal),
    );
    this.#readMax = Math.min(2 * limit, READ_MAX);
    const [found = [], [head] = [], [floor] = []] = answer.responses.map(({ response_range: one }) => one?.kvs ?? []);
    // What is beyond the head was written by hand, or is not there yet.
    const { length } = headOf(head);
    const kvs = found.slice(0, Math.max(0, length - after));
    const isThere = kvs[0]?.key === this.#entryKey(after + 1);
    if (!isThere && floor !== undefined && numberIn(floor.value) > after) return [];
    if (!isThere && length > after) throw gap(after + 1);
    return fitting(
      kvs.map(({ key, value, version }, at) => {
        if (key !== this.#entryKey(after + 1 + at)) throw gap(after + 1 + at);
        if (version !== 1n) throw byHand(`The entry in etcd at position ${after + 1 + at} was written over.`);
        const entry = fromBase64(value);
        return entry.length > 0 && entry.length <= SEQUENCER_LIMITS.entryBytesMax ? entry : NO_ENTRY;
      }),
    );
  }

  async forget(upTo: number, { signal }: SequencerOptions = {}): Promise<void> {
    const ends = this.#ends(signal);
    const { length } = await this.#readHead(ends);
    const last = Math.min(upTo, length - 1);
    for (let from = (await this.#readFloor(ends)) + 1; from <= last; ) {
      const entries = (await this.read(from - 1, { signal: ends })).slice(0, last - from + 1);
      // Another one drops them just now.
      if (entries.length === 0) return;
      const drop = (key: string) => ({ request_delete_range: { key } });
      const floor = { key: this.#key('floor'), value: base64(number(from - 1 + entries.length)) };
      await this.#client.call(
        '/v3/kv/txn',
        {
          compare: [],
          success: [
            { request_put: floor },
            ...entries.flatMap((entry, at) => [
              drop(this.#entryKey(from + at)),
              drop(this.#key(`at/${digestHex(digestOf(entry))}`)),
            ]),
          ],
          failure: [],
        },
        txn,
        ends,
      );
      from += entries.length;
    }
  }

  async *watch(after: number, signal: AbortSignal): AsyncIterable<number> {
    const ends = this.#ends(signal);
    let said = after;
    while (!ends.aborted) {
      let revision = 0n;
      try {
        const head = await this.#readHead(ends);
        if (head.length < said) throw shorter(head.length, said);
        if (head.length > said) {
          said = head.length;
          yield head.length;
          continue;
        }
        revision = head.at;
      } catch (error) {
        if (isCoded(error, 'order-stopped')) throw error;
        // Not there now: `changed` waits a moment.
      }
      await this.#client.changed(this.#key('head'), revision, WATCH_MS, ends);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    for (const { reject } of this.#waiting.splice(0)) reject(sequencerUnreachable('this node is closing'));
    this.#client[Symbol.dispose]();
  }

  async #work(): Promise<void> {
    this.#working = true;
    while (this.#waiting.length > 0) {
      const group = this.#takeGroup();
      try {
        const positions = await this.#appendAll(group);
        for (const [at, { resolve }] of group.entries()) resolve(positions[at]!);
      } catch (error) {
        this.#head = undefined;
        for (const { reject } of group) reject(error);
      }
    }
    this.#working = false;
  }

  #takeGroup(): readonly Waiting[] {
    const group: Waiting[] = [];
    let bytes = 0;
    while (group.length < GROUP_MAX && this.#waiting.length > 0) {
      const next = this.#waiting[0]!;
      bytes += next.entry.length;
      if (group.length > 0 && bytes > GROUP_BYTES_MAX) break;
      this.#waiting.shift();
      if (next.signal?.aborted === true) {
        next.reject(new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: next.signal.reason }));
        continue;
      }
      group.push(next);
    }
    return group;
  }

  async #appendAll(group: readonly Waiting[]): Promise<readonly number[]> {
    const entries = new Map(group.map(({ entry }) => [digestHex(digestOf(entry)), entry]));
    const positions = new Map<string, number>();
    while (positions.size < entries.size) {
      const fresh = [...entries].filter(([digest]) => !positions.has(digest));
      const head = this.#head ?? (await this.#readHead(this.#closing.signal));
      const put = (key: string, value: Uint8Array) => ({ request_put: { key, value: base64(value) } });
      const answer = await this.#client.call(
        '/v3/kv/txn',
        {
          compare: [
            { key: this.#key('head'), target: 'MOD', result: 'EQUAL', mod_revision: String(head.revision) },
            ...fresh.map(([digest]) => ({
              ...{ key: this.#key(`at/${digest}`), target: 'CREATE', result: 'EQUAL', create_revision: '0' },
            })),
          ],
          success: [
            put(this.#key('head'), number(head.length + fresh.length)),
            ...fresh.flatMap(([digest, entry], at) => [
              put(this.#entryKey(head.length + 1 + at), entry),
              put(this.#key(`at/${digest}`), number(head.length + 1 + at)),
            ]),
          ],
          failure: [
            { request_range: { key: this.#key('head') } },
            ...fresh.map(([digest]) => ({ request_range: { key: this.#key(`at/${digest}`) } })),
          ],
        },
        txn,
        this.#closing.signal,
      );
      if (answer.succeeded) {
        for (const [at, [digest]] of fresh.entries()) positions.set(digest, head.length + 1 + at);
        this.#head = { length: head.length + fresh.length, revision: answer.header.revision };
        continue;
      }
      // Somebody else was first, or some of them are there already.
      const [now, ...places] = answer.responses.map(({ response_range: found }) => found?.kvs[0]);
      this.#head = headOf(now);
      for (const [at, place] of places.entries()) {
        if (place !== undefined) positions.set(fresh[at]![0], numberIn(place.value));
      }
    }
    return group.map(({ entry }) => positions.get(digestHex(digestOf(entry)))!);
  }

  /** `at`: the revision of the whole store that this was read at. */
  async #readHead(
    signal: AbortSignal,
  ): Promise<{ readonly length: number; readonly revision: bigint; readonly at: bigint }> {
    const answer = await this.#client.call('/v3/kv/range', { key: this.#key('head') }, range, signal);
    return { ...headOf(answer.kvs[0]), at: answer.header.revision };
  }

  /** Entries up to there were dropped. */
  async #readFloor(signal: AbortSignal): Promise<number> {
    const answer = await this.#client.call('/v3/kv/range', { key: this.#key('floor') }, range, signal);
    return answer.kvs[0] === undefined ? 0 : numberIn(answer.kvs[0].value);
  }

  #ends(signal: AbortSignal | undefined): AbortSignal {
    return signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
  }

  #key(name: string): string {
    return base64(utf8(`${this.#prefix}/${name}`));
  }

  #entryKey(position: number): string {
    return this.#key(`entry/${String(position).padStart(16, '0')}`);
  }
}

function headOf(found: z.infer<typeof pair> | undefined): { readonly length: number; readonly revision: bigint } {
  return found === undefined
    ? { length: 0, revision: 0n }
    : { length: numberIn(found.value), revision: found.mod_revision };
}

function number(value: number): Uint8Array {
  return utf8(String(value));
}

function numberIn(value: string): number {
  const text = fromUtf8(fromBase64(value));
  if (/^[1-9]\d{0,14}$/.test(text)) return Number(text);
  throw byHand('A position in etcd is no number.');
}

function gap(position: number): HyperMeshError {
  return byHand(`The order in etcd has a gap at position ${position}.`);
}

function byHand(what: string): HyperMeshError {
  return new HyperMeshError('order-stopped', what, {
    hint: `Keys of HyperMesh were deleted or written by hand. ${ELSEWHERE}`,
  });
}
