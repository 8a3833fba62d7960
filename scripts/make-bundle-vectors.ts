import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { base64, fromBase64, fromUtf8, utf8 } from '../src/base/bytes.ts';
import { digestOf } from '../src/base/digest.ts';
import { isCoded } from '../src/base/errors.ts';
import { canonicalJson, type Json } from '../src/base/json.ts';
import { HyperMesh, type HyperMeshConfig, verifyBundleOffline } from '../src/index.ts';
import { type Bundle, decodeBundle } from '../src/wire/bundle.ts';
import type { TrustAnchor } from '../src/wire/signature.ts';
import { decodeStatement, encodeStatement } from '../src/wire/statement.ts';
import {
  bytesOf,
  type Change,
  type InvalidBundle,
  keysOf,
  pinOf,
  type ValidBundle,
  valueAt,
} from '../test/bundle-vectors.ts';
import { SMALL_NETWORK, writePackage } from '../test/system/support.ts';

/**
 * Makes test/vectors/bundle/ anew. Signatures, keys and times differ on every run, so the vectors are stored; run this only when the
 * format changes, and read what it prints: for each invalid bundle, the code with which it is refused.
 */
const DAY_MS = 86_400_000;
const folder = await mkdtemp(join(tmpdir(), 'hypermesh-vectors-'));

/** The same cheap terms, with nothing asked of who publishes: every proof body is null. */
const FREE = {
  ...SMALL_NETWORK,
  requirements: {
    ...SMALL_NETWORK.requirements,
    publish: { kind: 'publish', space: null, stake: null, work: null, time: null },
  },
} as const;

interface Published {
  readonly bundles: readonly Bundle[];
  /** The anchor of the network after the publisher's certificate was revoked. */
  readonly revoked: TrustAnchor;
}

async function publish(
  network: HyperMeshConfig['network'] & object,
  names: readonly string[],
  reason: 'superseded' | 'key-compromise',
): Promise<Published> {
  const home = await mkdtemp(join(folder, 'home-'));
  await using hypermesh = await HyperMesh.create({ home, network });
  const catalog = await hypermesh.loadExtension('catalog');
  const { trust } = hypermesh.node;
  const bundles: Bundle[] = [];
  for (const name of names) {
    const source = await writePackage(
      join(home, '..', name),
      { name, version: '1.0.0', type: 'library', license: 'Apache-2.0' },
      { 'greeting.txt': `Hello from ${name}.\n` },
    );
    await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source)));
    bundles.push(await catalog.bundle(name));
  }
  // Revocation lists count in seconds: what is signed in the second of a revocation comes after it.
  await setTimeout(1_100);
  const { fingerprint } = await trust.identity('publisher');
  await trust.revoke(fingerprint, reason);
  return { bundles, revoked: await trust.anchor() };
}

async function describe(name: string, why: string, bundle: Bundle): Promise<ValidBundle> {
  const { ref, digest, publisher, checks } = await verifyBundleOffline(bundle, { network: bundle.network.id });
  return { name, why, bundle, ref, digest, publisher: publisher.keyId, checks: checks.map(({ check }) => check) };
}

const main = await publish(SMALL_NETWORK, ['ada/phrases', 'ada/greeter'], 'superseded');
const free = await publish(FREE, ['bob/greeter'], 'key-compromise');
const [phrases, greeter] = main.bundles as [Bundle, Bundle];
const [another] = free.bundles as [Bundle];
const valid = [
  await describe('first', 'the first package of a network that asks for all four proofs', phrases),
  await describe('second', 'the next one of the same publisher: the path of inclusion is not empty', greeter),
  await describe('free', 'another network, which asks for no proof: every body is null', another),
  await describe('superseded', 'the certificate was superseded after the publish, which therefore stands', {
    ...phrases,
    network: { ...phrases.network, anchor: main.revoked },
  }),
];

const at = (pointer: string, bundle: Bundle = phrases) => valueAt(bundle, keysOf(pointer));
const altered = (pointer: string): Change => {
  const bytes = fromBase64(at(pointer) as string);
  bytes[bytes.length >> 1]! ^= 1;
  return { path: pointer, value: base64(bytes) };
};
/** Changes to the proofs with the digest in the endorsement made to fit, so that the proofs themselves are judged. */
function reproved(...changes: readonly Change[]): readonly Change[] {
  const made = JSON.parse(fromUtf8(bytesOf({ name: '', why: '', base: 'first', changes, code: '' }, valid))) as Bundle;
  return [...changes, { path: '/endorsement/proofs', value: digestOf(utf8(canonicalJson(made.proofs))) }];
}
const genesis = phrases.network.genesis as Readonly<Record<string, Json>>;
const otherGenesis = { ...genesis, createdAtMs: 1 };
const statement = decodeStatement(fromBase64(phrases.signature.envelope.payload));
const admitted = phrases.endorsement.votes[0]!.atMs;

type Case = Omit<InvalidBundle, 'code' | 'base'> & { readonly base?: string };
const cases: readonly Case[] = [
  // not a bundle
  { name: 'nothing', why: 'no bytes', edit: { at: 0, remove: 2 ** 30, insert: '' } },
  { name: 'cut', why: 'the last byte is missing', edit: { at: -1, remove: 1, insert: '' } },
  { name: 'space', why: 'not canonical: a space at the end', edit: { at: 2 ** 30, remove: 0, insert: ' ' } },
  { name: 'twice', why: 'not canonical: a member is given twice', edit: { at: 1, remove: 0, insert: '"config":"",' } },
  { name: 'nested', why: 'a genesis of 20,000 lists in each other', edit: deepGenesis(20_000) },
  { name: 'extra', why: 'an unknown member', changes: [{ path: '/extra', value: 1 }] },
  { name: 'version', why: 'a format of the future', changes: [{ path: '/formatVersion', value: 3 }] },
  { name: 'old proofs', why: 'a proof set of format 1', changes: [{ path: '/proofs/formatVersion', value: 1 }] },
  { name: 'missing', why: 'a part is missing', changes: [{ path: '/inclusion', remove: true }] },
  { name: 'base64', why: 'the manifest is not base64', changes: [{ path: '/manifest', value: 'e30' }] },
  { name: 'no votes', why: 'an endorsement without votes', changes: [{ path: '/endorsement/votes', value: [] }] },
  // what was published
  { name: 'other manifest', why: 'config of another package', changes: [{ path: '/manifest', of: 'second' }] },
  { name: 'altered config', why: 'a bit of the config', changes: [altered('/config')] },
  {
    name: 'other content',
    why: 'manifest and config of another package of this publisher, whole',
    changes: [
      { path: '/manifest', of: 'second' },
      { path: '/config', of: 'second' },
    ],
  },
  // in which network
  { name: 'pinned', why: 'a genuine bundle of another network than expected', pinned: 'free' },
  {
    name: 'genesis',
    why: 'altered, not what the id names',
    pinned: null,
    changes: [{ path: '/network/genesis', value: otherGenesis }],
  },
  {
    name: 'other genesis',
    why: 'altered, and the id made to fit: nobody signed for that network',
    pinned: null,
    changes: [
      { path: '/network/genesis', value: otherGenesis },
      { path: '/network/id', value: digestOf(utf8(canonicalJson(otherGenesis))) },
    ],
  },
  {
    name: 'other network',
    why: 'id, genesis and root of another network',
    pinned: null,
    changes: [{ path: '/network', of: 'free' }],
  },
  { name: 'other root', why: 'the root of another network', changes: [{ path: '/network/anchor', of: 'free' }] },
  { name: 'no lists', why: 'no revocation lists', changes: [{ path: '/network/anchor/revocations', value: [] }] },
  // by whom
  { name: 'falcon', why: 'a bit of the FALCON signature', changes: [altered('/signature/envelope/signatures/0/sig')] },
  {
    name: 'ed25519',
    why: 'a bit of the Ed25519 signature',
    changes: [altered('/signature/envelope/signatures/1/sig')],
  },
  {
    name: 'one signature',
    why: 'signed by one algorithm only',
    changes: [{ path: '/signature/envelope/signatures/1', remove: true }],
  },
  {
    name: 'order',
    why: 'the signatures in another order',
    changes: [
      { path: '/signature/envelope/signatures/0', of: 'first', from: '/signature/envelope/signatures/1' },
      { path: '/signature/envelope/signatures/1', of: 'first', from: '/signature/envelope/signatures/0' },
    ],
  },
  {
    name: 'statement',
    why: 'the statement names another version than was signed',
    changes: [
      {
        path: '/signature/envelope/payload',
        value: base64(encodeStatement({ ...statement, signedAtMs: statement.signedAtMs + 1 })),
      },
    ],
  },
  { name: 'signed another', why: 'signed for another package', changes: [{ path: '/signature', of: 'second' }] },
  { name: 'stranger', why: 'signed by a publisher of another network', changes: [{ path: '/signature', of: 'free' }] },
  {
    name: 'role',
    why: 'signed by a validator: a head of the log in the place of the statement',
    changes: [
      { path: '/signature/envelope', of: 'first', from: '/inclusion/head/envelope' },
      { path: '/signature/chain', of: 'first', from: '/inclusion/head/chain' },
    ],
  },
  { name: 'chain', why: 'without the intermediate', changes: [{ path: '/signature/chain/1', remove: true }] },
  {
    name: 'expired',
    why: 'admitted when the certificate was over',
    changes: [{ path: '/endorsement/votes/0/atMs', value: admitted + 100 * DAY_MS }],
  },
  {
    name: 'revoked',
    why: 'the key of the publisher is known to be compromised',
    base: 'free',
    changes: [{ path: '/network/anchor', value: free.revoked as unknown as Json }],
  },
  // at what cost
  { name: 'other proofs', why: 'proofs for another publish', changes: [{ path: '/proofs', of: 'second' }] },
  { name: 'work', why: 'another nonce', changes: reproved({ path: '/proofs/work/nonce', value: 'f'.repeat(16) }) },
  { name: 'time', why: 'another output', changes: reproved(altered('/proofs/time/output')) },
  { name: 'quotient', why: 'another quotient', changes: reproved(altered('/proofs/time/quotient')) },
  { name: 'space', why: 'another label', changes: reproved(altered('/proofs/space/labels')) },
  { name: 'stake', why: 'a statement for another publish', changes: reproved({ path: '/proofs/stake', of: 'second' }) },
  { name: 'no work', why: 'a proof left out', changes: reproved({ path: '/proofs/work', value: null }) },
  {
    name: 'cheaper',
    why: 'the challenge asks for less than the network',
    changes: reproved(
      { path: '/proofs/challenge/requirements/work', value: null },
      { path: '/proofs/work', value: null },
    ),
  },
  {
    name: 'replayed',
    why: 'proofs and endorsement of another publish',
    changes: [
      { path: '/proofs', of: 'second' },
      { path: '/endorsement', of: 'second' },
    ],
  },
  // admitted by whom
  {
    name: 'later',
    why: 'the votes are for another time',
    changes: [{ path: '/endorsement/votes/0/atMs', value: admitted + 1 }],
  },
  { name: 'other votes', why: 'votes on another publish', changes: [{ path: '/endorsement/votes', of: 'second' }] },
  {
    name: 'other committee',
    why: 'the votes are said to be those of another committee',
    changes: [{ path: '/endorsement/committee', value: digestOf(utf8('another epoch document')) }],
  },
  {
    name: 'fast',
    why: 'a vote by Ed25519 alone',
    changes: [
      { path: '/endorsement/votes/0/attestation/falcon', remove: true },
      { path: '/endorsement/votes/0/attestation/path', remove: true },
      { path: '/endorsement/votes/0/attestation/index', remove: true },
      { path: '/endorsement/votes/0/attestation/size', remove: true },
    ],
  },
  {
    name: 'vote ed25519',
    why: 'a bit of the Ed25519 signature of a vote',
    changes: [altered('/endorsement/votes/0/attestation/ed25519')],
  },
  { name: 'outsider', why: 'a vote of another committee', changes: [{ path: '/endorsement/votes', of: 'free' }] },
  {
    name: 'vote',
    why: 'a bit of the FALCON signature of a vote',
    changes: [altered('/endorsement/votes/0/attestation/falcon')],
  },
  // logged where
  { name: 'index', why: 'another place in the log', changes: [{ path: '/inclusion/index', value: 1 }] },
  { name: 'log entry', why: 'the entry of another package', changes: [{ path: '/inclusion', of: 'second' }] },
  {
    name: 'head',
    why: 'a head that nobody signed',
    changes: [{ path: '/inclusion/head/timestampMs', value: admitted }],
  },
  {
    name: 'head signature',
    why: 'a bit of the Ed25519 signature of the head',
    changes: [altered('/inclusion/head/envelope/signatures/1/sig')],
  },
];

/** Puts lists in lists at the beginning of the genesis document. */
function deepGenesis(depth: number): InvalidBundle['edit'] & object {
  const mark = '"genesis":{';
  const position = canonicalJson(phrases).indexOf(mark) + mark.length;
  return { at: position, remove: 0, insert: `"a":${'['.repeat(depth)}${']'.repeat(depth)},` };
}

const invalid: InvalidBundle[] = [];
for (const one of cases) {
  const vector = { base: 'first', ...one, code: '' };
  try {
    await verifyBundleOffline(decodeBundle(bytesOf(vector, valid)), pinOf(vector, valid));
    throw new Error(`${one.name} is accepted`);
  } catch (error) {
    if (!isCoded(error)) throw error;
    process.stdout.write(`${one.name}: ${error.code}: ${error.message.slice(0, 120)}\n`);
    invalid.push({ ...vector, code: error.code });
  }
}

const target = join(import.meta.dirname, '..', 'test', 'vectors', 'bundle');
await mkdir(target, { recursive: true });
for (const [name, list] of Object.entries({ valid, invalid })) {
  const lines = list.map((entry) => JSON.stringify(entry));
  await writeFile(join(target, `${name}.json`), `[\n${lines.join(',\n')}\n]\n`);
}
await rm(folder, { recursive: true, force: true });
