import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestOf } from '../src/base/digest.ts';
import { canonicalJson, type Json } from '../src/base/json.ts';
import { EntryMaker, seatOf } from '../src/testing/order.ts';
import { makeSigner, type Signer } from '../src/testing/signer.ts';
import {
  type Action,
  type Entry,
  encodeEntry,
  entryId,
  SEQUENCER_TYPE,
  type SequencerStatement,
  SPACE_LOST_TYPE,
} from '../src/wire/entry.ts';
import { byKey, type Committee } from '../src/wire/epoch.ts';
import {
  firstHead,
  HEAD_TYPE,
  type HeadStatement,
  nextHead,
  PREPARE_TYPE,
  type PrepareStatement,
} from '../src/wire/order.ts';
import { VOTE_TYPE } from '../src/wire/proof.ts';

/**
 * Makes the valid ones of test/vectors/entry/ and test/vectors/order/ anew, and the signatures in the invalid ones. Keys differ on every run, so the vectors are
 * stored; run this only when the format changes.
 */
const vectors = join(import.meta.dirname, '..', 'test', 'vectors');
const publisher = makeSigner();
const signers = Array.from({ length: 3 }, makeSigner).sort((a, b) => (a.keyId < b.keyId ? -1 : 1)) as [
  Signer,
  Signer,
  Signer,
];
const [first, second] = signers;
const h = (digit: string) => digit.repeat(64);
const write = (name: string, value: unknown) => writeFile(join(vectors, name), `${JSON.stringify(value, null, 2)}\n`);

const make = new EntryMaker(`sha256:${'1f'.repeat(32)}`);
const { networkId } = make;
const head = { formatVersion: 1, networkId } as const;
const seats = byKey([first, second].map((one) => seatOf(one, publisher)));
const committee: Committee = { epoch: 0, validators: seats.slice(0, 1), digest: networkId };
const one = { kind: 'publish', subject: digestOf('one'), ref: 'ada/greeter@1.0.0', sequence: 1 } as const;
const [said, again] = [one, { ...one, subject: digestOf('two') }].map((what) => make.order(publisher, what)) as [
  ReturnType<EntryMaker['order']>,
  ReturnType<EntryMaker['order']>,
];
const word = (ref: string) => {
  const operation = { ...one, ref, identity: publisher.keyId };
  const vote = { formatVersion: 3, networkId, committee: networkId, operation, proofs: digestOf('proofs'), atMs: 5 };
  return { statement: vote as Json, attestation: first.attest(VOTE_TYPE, vote) };
};
const words = { kind: 'words', committee: networkId, type: VOTE_TYPE } as const;
const lost = { networkId, committee: networkId, account: publisher.keyId, root: 'ab'.repeat(32) };
const moved = (more: Partial<SequencerStatement> = {}): Entry => {
  const to = { kind: 'etcd', endpoints: ['http://192.0.2.7:2379'] } as const;
  const statement: SequencerStatement = { networkId, committee: networkId, moves: 0, to, ...more };
  return { ...head, kind: 'sequencer', statement, attestations: [first.attest(SEQUENCER_TYPE, statement)] };
};
const told = (action: Action) => make.instruct(publisher, action);
const entries: Readonly<Record<string, Entry>> = {
  'a claim of a name': told({ kind: 'claim', name: 'ada/greeter' }),
  'a claim of a scope': told({ kind: 'claim', name: 'ada' }),
  'a transfer': told({ kind: 'transfer', to: h('7'), amount: 5 }),
  'a lock': told({ kind: 'lock', amount: 100 }),
  'an unlock': told({ kind: 'unlock', amount: 50 }),
  'a grant': told({ kind: 'grant', to: h('7'), amount: 10, id: h('9') }),
  'a clock': make.clock(first, Date.UTC(2026, 10, 29, 12)),
  'evidence against a publisher': make.conflict(publisher, said, again),
  'evidence against a validator': {
    ...{ ...head, kind: 'evidence' },
    conflict: { ...words, first: word('ada/greeter@1.0.0'), second: word('ada/greeter@1.0.1') },
  },
  'a lost commitment': {
    ...{ ...head, kind: 'space-lost', statement: lost },
    attestations: [first.attest(SPACE_LOST_TYPE, lost)],
  },
  'an epoch': make.epoch(committee, seats, [first]),
  'a handover': make.handover(first, networkId, [said]),
  'a move of the sequencer': moved(),
  'a move of the sequencer from an engine that is lost': moved({
    after: { view: 1, index: 41, head: 'c4'.repeat(32) },
  }),
};
await write(
  'entry/valid.json',
  Object.entries(entries).map(([why, entry]) => ({ why, entry, id: entryId(encodeEntry(entry)) })),
);

const network = digestOf('an order');
const texts = ['{"first":1}', '{"second":2}', 'x'];
let at = firstHead(network);
const chain = texts.map((text) => {
  at = nextHead(at, Buffer.from(text));
  return { text, head: at };
});
const place = {
  ...{ networkId: network, committee: digestOf('an epoch document') },
  ...{ view: 0, index: 3, head: at },
};
const shown: PrepareStatement = { formatVersion: 1, ...place };
const prepares = signers.map((signer) => ({ statement: shown, attestation: signer.attest(PREPARE_TYPE, shown) }));
const statement: HeadStatement = { formatVersion: 3, ...place, base: 1, stateRoot: 'ab'.repeat(32) };
const attestations = signers.map((signer) => signer.attest(HEAD_TYPE, statement));
const certificate = { statement, attestations };
const part = texts.slice(1).map((text) => Buffer.from(text).toString('base64'));
await write('order/valid.json', {
  chain: { networkId: network, first: firstHead(network), entries: chain },
  validators: signers.map(({ keys }) => keys),
  certificate,
  votes: {
    ...{ applied: 1, prepares },
    ...{ commits: attestations.map((attestation) => ({ statement, attestation })), recovery: null },
  },
  part: { certificate, entries: part, floor: 0 },
  snapshot: { snapshot: { base: 1, head: chain[0]!.head, certificate }, documents: [] },
  facts: {
    facts: [
      ['index', '1'],
      ['supply', '1000000'],
    ],
    isLast: true,
  },
});
// The others are patches that hold no signatures.
const [a, b] = attestations as [(typeof attestations)[0], (typeof attestations)[0]];
const lists: Readonly<Record<string, Json>> = JSON.parse(
  canonicalJson({ 'validators in another order': [b, a], 'one validator twice': [a, a] }),
) as Readonly<Record<string, Json>>;
const invalid = JSON.parse(await readFile(join(vectors, 'order', 'invalid.json'), 'utf8')) as { why: string }[];
await write(
  'order/invalid.json',
  invalid.map((one) => (lists[one.why] === undefined ? one : { ...one, patch: { attestations: lists[one.why]! } })),
);
