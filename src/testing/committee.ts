import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { SeatAsk } from '../capabilities/membership.ts';
import { type NKrypt, openConsensus } from '../subsystems/nkrypt/index.ts';
import { openTrust, signatureCheck, type TrustChain } from '../subsystems/trustchain/index.ts';
import { GENESIS_TYPE, type Genesis } from '../wire/genesis.ts';
import type { OperationKind, Requirements } from '../wire/proof.ts';

/** One home of a {@link TestCommittee}, with a seat or without. */
export interface CommitteeHome {
  readonly trust: TrustChain;
  readonly directory: string;
  /** Key id of its validator, and of its publisher. */
  readonly validator: string;
  readonly publisher: string;
  nkrypt: NKrypt;
}

/** What a test makes of a request to a validator: `pass` asks it. May throw, wait, or answer with something else. */
export type Wire = (
  to: string,
  method: string,
  body: unknown,
  from: string,
  pass: (body?: unknown) => Promise<unknown>,
) => Promise<unknown>;

export interface TestCommittee extends AsyncDisposable {
  readonly genesis: Genesis;
  readonly document: Json;
  /** The first `n` have the seats. */
  readonly homes: readonly CommitteeHome[];
  wire: Wire;
  /** Closes a home and opens it again from its folder, as after a crash. */
  restart(home: CommitteeHome): Promise<void>;
  /** The same keys in another folder: a copy of a home that somebody else runs. */
  copyOf(home: CommitteeHome): Promise<NKrypt>;
}

/** The cheapest terms that still ask for all four proofs. */
export function cheapTerms(kind: OperationKind): Requirements {
  const all = kind === 'publish' || kind === 'default';
  return {
    kind,
    space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 8 },
    stake: all ? { amountMin: 100 } : null,
    work: all ? { hexDigits: 1 } : null,
    time: { squarings: 2 ** 10, windowMs: 60_000 },
  };
}

/** Homes of one process whose validators are one committee; requests are JSON that passes through `wire`. */
export async function testCommittee(
  folder: string,
  {
    n,
    clients = 1,
    clock,
    roundMs = 3_600_000,
  }: {
    readonly n: number;
    readonly clients?: number;
    readonly clock: Clock;
    /** How often validators look at what they were shown; in tests that do not care, never. */
    readonly roundMs?: number;
  },
): Promise<TestCommittee> {
  const closing = new AsyncDisposableStack();
  const requirements = {
    publish: cheapTerms('publish'),
    install: cheapTerms('install'),
    execute: cheapTerms('execute'),
    default: cheapTerms('default'),
  };
  const options = {
    ...{ clock, requirements, space: { bytes: 65_536, iterations: 2 } },
    ...{ threads: 1, stakeInitial: 1_000, auditRoundMs: roundMs },
  };
  const homes: CommitteeHome[] = [];
  const copies: NKrypt[] = [];
  const trusts = await Promise.all(
    Array.from({ length: n + clients }, async (_, i) => {
      const directory = join(folder, `home-${i}`);
      mkdirSync(directory, { recursive: true, mode: 0o700 });
      return closing.use(await openTrust({ directory: join(directory, 'trust'), clock }));
    }),
  );
  const keys = await Promise.all(trusts.map((trust) => trust.validatorKeys()));
  const first = closing.use(
    await openConsensus({ trust: trusts[0]!, check: signatureCheck }, { ...options, directory: join(folder, 'terms') }),
  );
  const { approvals: _approvals, ...terms } = (await first.genesis()).document as unknown as Genesis;
  const order = [...keys.keys()].slice(0, n).sort((a, b) => (keys[a]!.key < keys[b]!.key ? -1 : 1));
  const unsigned = {
    ...terms,
    committee: { epoch: 0, validators: order.map((i) => keys[i]!) },
    stake: { ...terms.stake, accounts: keys.map(({ account }) => ({ account, balance: 1_000, locked: 100 })) },
  };
  const approvals = await Promise.all(order.map((i) => trusts[i]!.attest(GENESIS_TYPE, unsigned)));
  const genesis: Genesis = { ...unsigned, approvals };
  const document = JSON.parse(JSON.stringify(genesis)) as Json;

  const committee: TestCommittee = {
    genesis,
    document,
    homes,
    wire: (_to, _method, _body, _from, pass) => pass(),
    async restart(home) {
      closed.add(home);
      await home.nkrypt[Symbol.asyncDispose]();
      home.nkrypt = await open(home);
      closed.delete(home);
    },
    async copyOf(home) {
      const copy = await open({ ...home, directory: `${home.directory}-copy` });
      copies.push(copy);
      return copy;
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(copies.map((copy) => copy[Symbol.asyncDispose]()));
      for (const home of homes) closed.add(home);
      await Promise.all(homes.map(({ nkrypt }) => nkrypt[Symbol.asyncDispose]()));
      await closing.disposeAsync();
    },
  };
  /** Nobody answers in a home that is being closed: what its database says then is no answer. */
  const closed = new Set<CommitteeHome>();
  const reach = async (home: CommitteeHome | undefined, ask: (nkrypt: NKrypt) => Promise<unknown>) => {
    const nobody = () => new HyperMeshError('peer-unreachable', 'nobody');
    if (home === undefined || closed.has(home)) throw nobody();
    try {
      return plain(await ask(home.nkrypt));
    } catch (error) {
      throw closed.has(home) ? nobody() : error;
    }
  };
  const plain = (value: unknown) => JSON.parse(JSON.stringify(value)) as unknown;
  const askFrom =
    (from: Pick<CommitteeHome, 'publisher'>): SeatAsk =>
    async (validator, method, body) => {
      const home = homes.find((one) => one.validator === validator);
      const sent = plain(body);
      const pass = (other: unknown = sent) =>
        reach(home, (nkrypt) => nkrypt.desk(method as never, from.publisher, plain(other)));
      return committee.wire(validator, method, sent, from.publisher, pass);
    };
  async function open(home: Pick<CommitteeHome, 'trust' | 'directory' | 'publisher'>): Promise<NKrypt> {
    const nkrypt = await openConsensus(
      { trust: home.trust, check: signatureCheck },
      { ...options, directory: join(home.directory, 'consensus') },
    );
    nkrypt.follow(askFrom(home));
    nkrypt.meet(async (validator, method, body) => {
      const other = homes.find((one) => one.validator === validator);
      const pass = (sent: unknown = body) =>
        reach(other, (nkrypt) => nkrypt.order(method as never, home.publisher, plain(sent)));
      return committee.wire(validator, method, plain(body), home.publisher, pass);
    });
    await nkrypt.adopt(document);
    return nkrypt;
  }
  for (const [i, trust] of trusts.entries()) {
    const directory = join(folder, `home-${i}`);
    const { key: validator, account: publisher } = keys[i]!;
    homes.push({ trust, directory, validator, publisher, nkrypt: await open({ trust, directory, publisher }) });
  }
  return committee;
}
