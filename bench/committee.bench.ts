import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fromBase64, fromHex } from '../src/base/bytes.ts';
import { digestOf } from '../src/base/digest.ts';
import { checkedCertificate } from '../src/subsystems/nkrypt/certificate.ts';
import { Committee } from '../src/subsystems/nkrypt/committee.ts';
import { foundNetwork } from '../src/subsystems/nkrypt/found.ts';
import { firstCommittee } from '../src/subsystems/nkrypt/ledger/ledger.ts';
import { openStore } from '../src/subsystems/nkrypt/store.ts';
import { VoteBook } from '../src/subsystems/nkrypt/votes.ts';
import { signAllEd25519, verifyEd25519 } from '../src/subsystems/trustchain/ed25519.ts';
import { falconVerifier } from '../src/subsystems/trustchain/falcon.ts';
import { openTrust, wordHolds } from '../src/subsystems/trustchain/index.ts';
import { makeSigner } from '../src/testing/signer.ts';
import { attestedBytes, batchBytes, publicKeysOf } from '../src/wire/attestation.ts';
import { encodeOrder, keyBytes, ORDER_TYPE, type SelfSigned } from '../src/wire/entry.ts';
import { GENESIS_TYPE, type Genesis } from '../src/wire/genesis.ts';
import { foldPath, leafHash } from '../src/wire/log.ts';
import { type Endorsement, type Operation, type SignedVote, VOTE_TYPE, voteOf } from '../src/wire/proof.ts';
import { openEnvelope } from '../src/wire/signature.ts';
import { type Bench, type Comparison, collectGarbage, inTurn } from './harness.ts';

const VALIDATORS = 4;
const QUORUM = 3;
const ROUNDS = 3;
/** Publishes of a round, and how many are under way at once. */
const PUBLISHES = 100;
const AT_ONCE = 48;
/** Certificates of a round whose votes were each sealed alone. */
const ALONE = 20;

/**
 * What admitting a publish costs a committee of four and its client together beside the four proofs, in processor time of all threads: the check of the publisher's
 * order, the vote rule on the disk of each validator, votes, and the certificate, each vote checked. Outside: making and judging the proofs (`proof`), the
 * publisher's own signature under the order, and the network.
 */
export const bench: Bench = {
  name: 'committee',
  about:
    'voting of a committee of four without the proofs, and checking what it certified, each against the bare signatures in it',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    await using closing = new AsyncDisposableStack();
    closing.defer(() => rm(folder, { recursive: true, force: true }));
    const clock = { nowMs: () => Date.now() };
    const trusts = [];
    for (let i = 0; i < VALIDATORS; i++) {
      const directory = join(folder, `trust-${i}`);
      trusts.push(closing.use(await openTrust({ directory, clock, limits: { keysIdleMs: 60_000 } })));
    }
    const keyed = await Promise.all(trusts.map(async (trust) => ({ trust, keys: await trust.validatorKeys() })));
    keyed.sort((a, b) => (a.keys.key < b.keys.key ? -1 : 1));
    const { approvals: _approvals, ...terms } = await foundNetwork(keyed[0]!.trust, clock, {});
    const unsigned = { ...terms, committee: { epoch: 0, validators: keyed.map(({ keys }) => keys) } };
    const approvals = await Promise.all(keyed.map(({ trust }) => trust.attest(GENESIS_TYPE, unsigned)));
    const genesis: Genesis = { ...unsigned, approvals };
    const networkId = digestOf(Buffer.from('bench'));
    const ledger = { ownerOf: () => undefined, account: () => ({ ...nothing, locked: 1_000 }) };
    const law = { genesis, networkId, committee: firstCommittee(genesis, networkId) };
    const validators = keyed.map(({ trust, keys }, i) => {
      const store = closing.use(openStore(folder, `votes-${i}.db`));
      const lent = { trust, store, votes: new VoteBook(store), ledger };
      return { keys, committee: new Committee(lent, { clock, ...law }) };
    });

    const publisher = makeSigner();
    // All of them before anything is measured: signing leaves much behind that is collected later.
    const sets = Array.from({ length: 2 * (ROUNDS + 1) + 1 }, () =>
      Array.from({ length: PUBLISHES }, () => prepared(publisher, networkId)),
    );
    const certified: Endorsement[] = [];
    const certificateOf = (operation: Operation, votes: readonly SignedVote[]): Endorsement => {
      const sorted = [...votes].sort((a, b) => (a.attestation.validator < b.attestation.validator ? -1 : 1));
      return {
        ...{ formatVersion: 3, networkId, committee: networkId, operation },
        proofs: operation.subject,
        votes: sorted,
      };
    };
    const publish = async ({ operation, order }: Prepared, fast: boolean): Promise<void> => {
      const proofs = operation.subject;
      const votes: SignedVote[] = [];
      const about = { formatVersion: 3, networkId, committee: networkId, operation, proofs } as const;
      await Promise.all(
        validators.map(async ({ committee, keys }) => {
          await committee.checkOrder(operation, order);
          const { atMs } = await committee.decide(operation, proofs, order);
          const vote = await committee.sign(operation, proofs, atMs, fast);
          if (votes.length === QUORUM) return;
          if (!wordHolds(vote.attestation, VOTE_TYPE, { ...about, atMs }, keys))
            throw new Error('a vote does not hold');
          votes.push(vote as SignedVote);
        }),
      );
      if (!fast) certified.push(certificateOf(operation, votes));
    };
    const cpuOf = async (count: number, work: () => unknown): Promise<number> => {
      const before = process.cpuUsage();
      await work();
      const { user, system } = process.cpuUsage(before);
      return (user + system) / 1_000 / count;
    };
    const ours = async (fast: boolean) => {
      const waiting = sets.pop()!;
      const one = async () => {
        for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) await publish(next, fast);
      };
      return cpuOf(PUBLISHES, () => Promise.all(Array.from({ length: AT_ONCE }, one)));
    };
    const known = sets.pop()!;
    const bare = () => cpuOf(PUBLISHES, () => known.forEach(bareSignatures));
    collectGarbage();
    const reference = '4 orders checked, 4 votes signed and 3 checked, bare';
    const rows: Comparison[] = [
      {
        ...{ name: 'processor time of a certified publish (Ed25519)', unit: 'ms', reference, oursMax: 1_000 / 300 },
        ...(await inTurn(ROUNDS, () => ours(true), bare)),
      },
      {
        ...{ name: 'processor time of a certified publish (both)', unit: 'ms', reference },
        ...(await inTurn(ROUNDS, () => ours(false), bare)),
      },
    ];
    const alone: Endorsement[] = [];
    for (const { operation } of known.slice(0, ALONE * (ROUNDS + 1))) {
      const words = validators
        .slice(0, QUORUM)
        .map(({ committee }) => committee.sign(operation, operation.subject, 0, false));
      alone.push(certificateOf(operation, (await Promise.all(words)) as SignedVote[]));
    }
    collectGarbage();
    const trust = { attested: async (...word: Parameters<typeof wordHolds>) => wordHolds(...word) };
    // Each certificate is checked once: what they have in common is all that may be remembered.
    const checked = (waiting: Endorsement[], count: number) => {
      const taken: (() => void)[] = [];
      const ours = async () => {
        const some = waiting.splice(0, count);
        taken.splice(0, taken.length, ...some.map((one) => bareVotes(one, genesis)));
        return cpuOf(count, async () => {
          for (const one of some) await checkedCertificate(trust, one, law);
        });
      };
      return inTurn(ROUNDS, ours, () =>
        cpuOf(count, () => {
          for (const check of taken) check();
        }),
      );
    };
    const votes = { unit: 'ms', reference: 'its 6 bare signatures' } as const;
    // The larger number first, so that neither pays for what the engine compiles meanwhile.
    const atOnce = await checked(certified, PUBLISHES);
    rows.push(
      {
        ...{ name: 'processor time of checking a certificate of three votes', ...votes, oursMax: 1 },
        ...(await checked(alone, ALONE)),
      },
      { ...{ name: 'the same, of certificates that were made at once', ...votes }, ...atOnce },
    );
    return rows;
  },
};

const nothing = { account: '', balance: 1_000, locked: 0, unbonding: [], isSuspended: false, number: 0 };

interface Prepared {
  readonly operation: Operation;
  readonly order: SelfSigned;
}

let sequence = 0;

function prepared(publisher: ReturnType<typeof makeSigner>, networkId: Operation['subject']): Prepared {
  sequence += 1;
  const operation: Operation = {
    ...{ kind: 'publish', identity: publisher.keyId, sequence },
    subject: digestOf(Buffer.from(String(sequence))),
    ref: `bench/package@${sequence}.0.0`,
  };
  const payload = encodeOrder({ formatVersion: 1, networkId, operation });
  return { operation, order: { keys: publisher.keys, envelope: publisher.seal(ORDER_TYPE, payload) } };
}

const seed = new Uint8Array(32).fill(7);

/** The same signatures with nothing around them. */
function bareSignatures({ order }: Prepared): void {
  const { signed, ed25519, falcon } = openEnvelope(order.envelope);
  const keys = keyBytes(order.keys);
  for (let i = 0; i < VALIDATORS; i++) {
    verifyEd25519(ed25519, signed, keys.ed25519);
    falconVerifier().verify(falcon, signed, keys.falcon);
    signAllEd25519([signed], seed);
  }
  for (let i = 0; i < QUORUM; i++) verifyEd25519(ed25519, signed, keys.ed25519);
}

function bareVotes(certificate: Endorsement, { committee }: Genesis): () => void {
  const parts = certificate.votes.map(({ atMs, attestation }) => {
    const keys = publicKeysOf(committee.validators.find(({ key }) => key === attestation.validator)!);
    const bytes = attestedBytes(VOTE_TYPE, voteOf(certificate, atMs));
    const root = foldPath(leafHash(bytes), attestation.index, attestation.size, attestation.path.map(fromHex))!;
    const [ed25519, falcon] = [fromBase64(attestation.ed25519), fromBase64(attestation.falcon)];
    return { keys, bytes, batch: batchBytes(root), ed25519, falcon };
  });
  return () => {
    for (const { keys, bytes, batch, ed25519, falcon } of parts) {
      const holds = verifyEd25519(ed25519, bytes, keys.ed25519) && falconVerifier().verify(falcon, batch, keys.falcon);
      if (!holds) throw new Error('a bare signature does not hold');
    }
  };
}
