import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { base64, concat, equal, fromBase64, fromHex, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { OVERLAY_MESSAGES } from '../testing/overlay-messages.ts';
import { readVectors } from '../testing/vectors.ts';
import { decodeBundle, encodeBundle } from './bundle.ts';
import { decodeCertification, decodeJoinRequest } from './certification.ts';
import {
  decodeRangeAnswer,
  decodeRangeRequest,
  encodeFrame,
  encodeRangeAnswer,
  encodeRangeRequest,
  FrameDecoder,
} from './channel.ts';
import { decodeSignedCoding, encodeCoding } from './coding.ts';
import { COMMITTEE_REQUESTS, type CommitteeMethod, decodeBody, decodeRequest } from './committee.ts';
import {
  decodeHaveAnswer,
  decodeHaveAsk,
  decodeReadAsk,
  decodeShardList,
  encodeHaveAnswer,
  encodeHaveAsk,
  encodeReadAsk,
  encodeShardList,
} from './content.ts';
import { decodeEntry, decodeInstruction, type Entry, encodeEntry, encodeInstruction } from './entry.ts';
import { decodeEpochDocument } from './epoch.ts';
import {
  decodeHello,
  decodeHelloDocument,
  decodeVoucher,
  encodeHello,
  encodeHelloDocument,
  encodeVoucher,
} from './hello.ts';
import { decodeInvite, decodeOpenInvite, encodeInvite, encodeOpenInvite } from './invite.ts';
import { decodeSignedNodeRecord, encodeNodeRecord } from './node-record.ts';
import { decodeCertifiedPart, decodeHeadCertificate, decodeVoteExchange } from './order.ts';
import { decodeMessage, encodeMessage } from './overlay.ts';
import { decodeCompareAnswer, decodeCompareRequest, encodeCompareAnswer, encodeCompareRequest } from './reconcile.ts';
import {
  decodeRecordsAnswer,
  decodeRecordsNews,
  decodeRecordsRequest,
  encodeRecordsAnswer,
  encodeRecordsNews,
  encodeRecordsRequest,
} from './records.ts';
import { encodeSigned } from './signed.ts';
import { decodeSignedStateChange, encodeStateChange } from './state-change.ts';
import { decodeTerms, encodeTerms, type SignedTerms } from './terms.ts';

/**
 * Whatever bytes come: every decoder that another machine can reach either reads them or refuses them with its one code, and what it read is
 * written back as it came (`exact`) or means the same when it is read again. `npm test` runs over 100,000 cases; HYPERMESH_FUZZ multiplies them.
 */
interface Decoder {
  readonly name: string;
  readonly code: ErrorCode;
  /** Reads the bytes and writes what it understood; null for what is never written again. */
  readonly rewrite: (bytes: Uint8Array) => Uint8Array | null;
  readonly exact: boolean;
  readonly seeds: readonly Uint8Array[];
  readonly runs: number;
}

const RUNS = 5_000;
/** Documents with signatures: tens of kilobytes each. */
const RUNS_LARGE = 1_500;
const factor = Number(process.env['HYPERMESH_FUZZ'] ?? 1);

const decoders: Decoder[] = [];
function decoder<T>(
  name: string,
  code: ErrorCode,
  [decode, encode]: readonly [(bytes: Uint8Array) => T, (value: T) => Uint8Array],
  seeds: readonly Uint8Array[],
  { exact = true, runs = RUNS }: { exact?: boolean; runs?: number } = {},
): void {
  assert.ok(seeds.length > 0, name);
  decoders.push({ name, code, rewrite: (bytes) => encode(decode(bytes)), exact, seeds, runs });
}
/** A value that others only read: that it is read at all is the whole promise. */
function reader(
  name: string,
  code: ErrorCode,
  decode: (bytes: Uint8Array) => unknown,
  seeds: readonly Uint8Array[],
  runs = RUNS_LARGE,
): void {
  const rewrite = (bytes: Uint8Array) => {
    decode(bytes);
    return null;
  };
  decoders.push({ name, code, rewrite, exact: false, seeds, runs });
}

interface Text {
  readonly text: string;
}
interface Hex {
  readonly bytes: string;
}
const texts = (all: readonly Text[]) => all.map(({ text }) => utf8(text));
const bytesOf = (all: readonly Hex[]) => all.map(({ bytes }) => fromHex(bytes));

const compare = readVectors<{ questions: Text[]; answers: (Hex & { ranges: string[] })[] }>('reconcile', 'valid');
const loose = { exact: false };
decoder(
  'a question of reconciliation',
  'peer-lied',
  [decodeCompareRequest, encodeCompareRequest],
  texts(compare.questions),
  loose,
);
for (const { ranges, bytes } of compare.answers) {
  const decode = (given: Uint8Array) => decodeCompareAnswer(given, ranges);
  decoder(
    `an answer of reconciliation about ${ranges.length} ranges`,
    'peer-lied',
    [decode, encodeCompareAnswer],
    [fromHex(bytes)],
    { runs: 2_000 },
  );
}

const records = readVectors<{ requests: Text[]; news: Text[]; answers: Hex[] }>('records', 'valid');
decoder(
  'a question for records',
  'peer-lied',
  [decodeRecordsRequest, encodeRecordsRequest],
  texts(records.requests),
  loose,
);
decoder('news of records', 'peer-lied', [decodeRecordsNews, encodeRecordsNews], texts(records.news), loose);
decoder(
  'an answer with records',
  'peer-lied',
  [(bytes) => decodeRecordsAnswer(bytes, 3), encodeRecordsAnswer],
  bytesOf(records.answers),
);

const { messages } = readVectors<{ messages: (Text & { schema: string })[] }>('overlay', 'valid');
for (const [name, schema] of Object.entries(OVERLAY_MESSAGES)) {
  const seeds = texts(messages.filter((message) => message.schema === name));
  decoder(
    `a message of the overlay: ${name}`,
    'peer-lied',
    [(bytes) => decodeMessage<unknown>(schema, bytes), encodeMessage],
    seeds,
    loose,
  );
}

const documents = (format: string, list: string) =>
  readVectors<Record<string, { document: string }[]>>(format, 'valid')[list]!.map(({ document }) => utf8(document));
const large = { runs: RUNS_LARGE };
decoder(
  'a node record',
  'record-invalid',
  [decodeSignedNodeRecord, encodeSigned],
  documents('node-record', 'records'),
  large,
);
decoder(
  'a state change',
  'record-invalid',
  [decodeSignedStateChange, encodeSigned],
  documents('state-change', 'changes'),
  large,
);
decoder('a coding', 'record-invalid', [decodeSignedCoding, encodeSigned], documents('coding', 'codings'), large);
decoder('a hello', 'peer-lied', [decodeHelloDocument, encodeHelloDocument], documents('hello', 'document'), large);
/** What is no JSON is some other value. */
function jsonOrText(bytes: Uint8Array): unknown {
  const text = Buffer.from(bytes).toString('latin1');
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
/** What is signed, inside an envelope whose signatures nobody checks here. */
const signedBy = (seed: Uint8Array) => {
  const { envelope, chain } = JSON.parse(fromUtf8(seed)) as Parameters<typeof encodeSigned>[0];
  const carry = (payload: Uint8Array) => encodeSigned({ envelope: { ...envelope, payload: base64(payload) }, chain });
  return { payload: fromBase64(envelope.payload), carry };
};
const [nodeRecord, stateChange, coding] = [
  documents('node-record', 'records')[0]!,
  documents('state-change', 'changes')[0]!,
  documents('coding', 'codings')[0]!,
].map(signedBy) as [ReturnType<typeof signedBy>, ReturnType<typeof signedBy>, ReturnType<typeof signedBy>];
decoder(
  'what a coding says',
  'record-invalid',
  [(bytes) => decodeSignedCoding(coding.carry(bytes)).coding, encodeCoding],
  [coding.payload],
  large,
);
decoder(
  'what a node record says',
  'record-invalid',
  [(bytes) => decodeSignedNodeRecord(nodeRecord.carry(bytes)).record, encodeNodeRecord],
  [nodeRecord.payload],
  large,
);
decoder(
  'what a state change says',
  'record-invalid',
  [(bytes) => decodeSignedStateChange(stateChange.carry(bytes)).change, encodeStateChange],
  [stateChange.payload],
  large,
);
const hello = readVectors<{ hello: { payload: string }[]; voucher: { payload: string }[] }>('hello', 'valid');
const payloads = (all: readonly { payload: string }[]) => all.map(({ payload }) => utf8(payload));
decoder('what a hello says', 'peer-lied', [decodeHello, encodeHello], payloads(hello.hello));
decoder('what a voucher says', 'peer-lied', [decodeVoucher, encodeVoucher], payloads(hello.voucher));
const bundles = readVectors<{ bundle: Parameters<typeof encodeBundle>[0] }[]>('bundle', 'valid');
decoder(
  'a bundle',
  'bundle-invalid',
  [decodeBundle, encodeBundle],
  bundles.map(({ bundle }) => encodeBundle(bundle)),
  { runs: 500 },
);

const entries = readVectors<{ entry: Entry }[]>('entry', 'valid').map(({ entry }) => entry);
decoder('an entry of the ordered log', 'entry-invalid', [decodeEntry, encodeEntry], entries.map(encodeEntry), large);
const order = readVectors<{ certificate: Json; votes: Json; part: Json }>('order', 'valid');
for (const [kind, decode] of [
  ['certificate', decodeHeadCertificate],
  ['votes', decodeVoteExchange],
  ['part', decodeCertifiedPart],
] as const) {
  const read = (bytes: Uint8Array) => {
    // That the bytes are JSON at all is checked by whoever receives them.
    let value: unknown;
    try {
      value = decodeBody(bytes);
    } catch {
      value = null;
    }
    return decode(value);
  };
  reader(`${kind} of the order`, 'order-invalid', read, [utf8(canonicalJson(order[kind]))]);
}
const instructed = entries.flatMap((entry) => (entry.kind === 'instruction' ? [entry.signed] : []));
decoder(
  'what an instruction says',
  'entry-invalid',
  [
    (bytes) =>
      decodeInstruction({ ...instructed[0]!, envelope: { ...instructed[0]!.envelope, payload: base64(bytes) } }),
    encodeInstruction,
  ],
  instructed.map(({ envelope }) => fromBase64(envelope.payload)),
);
reader(
  'an epoch document',
  'epoch-invalid',
  (bytes) => decodeEpochDocument(jsonOrText(bytes)),
  [utf8(canonicalJson(readVectors<{ document: unknown }>('epoch', 'valid').document))],
  300,
);

const [, { value: terms }] = readVectors<readonly [unknown, { value: { signed: SignedTerms } }]>('terms', 'valid');
decoder('terms of a network', 'certification-invalid', [decodeTerms, encodeTerms], [encodeTerms(terms.signed)]);

const channel = readVectors<{ frames: Hex[]; rangeRequests: Hex[]; rangeAnswers: Hex[] }>('channel', 'valid');
decoder(
  'frames of a channel',
  'peer-lied',
  // What is cut off waits for more; what came whole is written as it was.
  [(bytes) => [...new FrameDecoder().push(bytes)], (frames) => concat(...frames.flatMap(encodeFrame))],
  bytesOf(channel.frames),
  { exact: false, runs: 10_000 },
);
decoder(
  'a question for a range',
  'peer-lied',
  [decodeRangeRequest, encodeRangeRequest],
  bytesOf(channel.rangeRequests),
);
decoder('the head of a range', 'peer-lied', [decodeRangeAnswer, encodeRangeAnswer], bytesOf(channel.rangeAnswers));

const content = readVectors<(Hex & { message: string })[]>('content', 'valid');
const contentSeeds = (kind: string) => bytesOf(content.filter(({ message }) => message === kind));
decoder('a shard list', 'content-invalid', [decodeShardList, encodeShardList], contentSeeds('shard-list'));
decoder('a question who has what', 'content-invalid', [decodeHaveAsk, encodeHaveAsk], contentSeeds('have-ask'));
decoder('an answer who has what', 'content-invalid', [decodeHaveAnswer, encodeHaveAnswer], contentSeeds('have-answer'));
decoder('a question for shards', 'content-invalid', [decodeReadAsk, encodeReadAsk], contentSeeds('read-ask'));

const invites = readVectors<Text[]>('invite', 'valid').map(({ text }) => utf8(text.replace(/\s/g, '').toLowerCase()));
decoder(
  'an invite',
  'invite-invalid',
  // Text that is not UTF-8 never reaches it.
  [(bytes) => decodeInvite(Buffer.from(bytes).toString('latin1')), (invite) => utf8(encodeInvite(invite))],
  invites,
  loose,
);

decoder(
  'an open invite',
  'invite-invalid',
  [(bytes) => decodeOpenInvite(Buffer.from(bytes).toString('latin1')), (invite) => utf8(encodeOpenInvite(invite))],
  readVectors<Text[]>('invite', 'open').map(({ text }) => utf8(text)),
  loose,
);

const json = (value: unknown) => utf8(canonicalJson(value));
const bodies = readVectors<{ method: CommitteeMethod; body: unknown }[]>('committee', 'valid');
for (const method of Object.keys(COMMITTEE_REQUESTS) as CommitteeMethod[]) {
  const seeds = bodies.filter((one) => one.method === method).map(({ body }) => json(body));
  reader(`a request ${method}`, 'usage', (bytes) => decodeRequest(method, decodeBody(bytes)), seeds, 1_000);
}
const certifications = readVectors<{ kind: 'request' | 'answer'; value: unknown }[]>('certification', 'valid');
for (const [kind, decode] of [
  ['request', decodeJoinRequest],
  ['answer', decodeCertification],
] as const) {
  const seeds = certifications.filter((one) => one.kind === kind).map(({ value }) => json(value));
  const read = (bytes: Uint8Array) => decode(JSON.parse(fromUtf8(bytes)));
  // Its JSON is read by the channel's side of the committee, above.
  const skipped = (bytes: Uint8Array) => {
    try {
      JSON.parse(fromUtf8(bytes));
    } catch {
      return null;
    }
    return read(bytes);
  };
  reader(`the ${kind} of a certification`, 'certification-invalid', skipped, seeds, 300);
}

/** Up to six bytes of a seed are others, are repeated, or are gone; or its end is. */
const edits = fc.array(
  fc.record({
    at: fc.nat(2 ** 20),
    kind: fc.constantFrom('set', 'insert', 'remove', 'repeat', 'cut', 'digit'),
    byte: fc.nat(255),
  }),
  { minLength: 1, maxLength: 6 },
);

function edited(seed: Uint8Array, changes: readonly { at: number; kind: string; byte: number }[]): Uint8Array {
  let bytes = seed;
  for (const { at, kind, byte } of changes) {
    const place = bytes.length === 0 ? 0 : at % bytes.length;
    const before = bytes.subarray(0, place);
    const after = bytes.subarray(place);
    if (kind === 'set') bytes = concat(before, Uint8Array.of(byte), after.subarray(1));
    // Stays text, and often stays a number or an id.
    else if (kind === 'digit') bytes = concat(before, Uint8Array.of(0x30 + (byte % 10)), after.subarray(1));
    else if (kind === 'insert') bytes = concat(before, Uint8Array.of(byte), after);
    else if (kind === 'remove') bytes = concat(before, after.subarray(1 + (byte % 8)));
    else if (kind === 'repeat') bytes = concat(before, after.subarray(0, 1 + (byte % 64)), after);
    else bytes = before;
  }
  return bytes;
}

const shown = (bytes: Uint8Array) => hex(bytes).slice(0, 1_000);

let cases = 0;
for (const { name, code, rewrite, exact, seeds, runs } of decoders) {
  test(`${name}: any bytes are read or refused as ${code}`, () => {
    let read = 0;
    const check = (bytes: Uint8Array) => {
      cases += 1;
      let written: Uint8Array | null;
      try {
        written = rewrite(bytes);
      } catch (error) {
        assert.ok(isCoded(error, code), String(error));
        return;
      }
      read += 1;
      if (written === null) return;
      const expected = exact ? bytes : rewrite(written)!;
      assert.ok(equal(written, expected), `read ${shown(bytes)}, and wrote ${shown(written)}`);
    };
    for (const seed of seeds) check(seed);
    assert.equal(read, seeds.length, 'a vector was refused');
    const numRuns = Math.ceil(runs * factor);
    const wild = fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.json().map(utf8));
    fc.assert(fc.property(wild, check), { numRuns: Math.ceil(numRuns / 5) });
    const near = fc.tuple(fc.constantFrom(...seeds), edits).map(([seed, changes]) => edited(seed, changes));
    fc.assert(fc.property(near, check), { numRuns });
  });
}

test('there were over 100,000 cases', { skip: factor < 1 ? 'fewer were asked for' : false }, () => {
  assert.ok(cases >= 100_000, `${cases}`);
});
